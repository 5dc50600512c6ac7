// Run runs an agent on a Deadline Mesh, shows what happens as it happens, and then where the time went.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	deadlinemesh "deadlinemesh.dev/clients/go"
	pb "deadlinemesh.dev/clients/go/gen/deadlinemesh/v1"
)

const (
	exitFailed    = 1
	exitUsage     = 2
	exitCancelled = 130 // What a shell reports of a program that Ctrl-C ended.
)

func main() {
	defaultAddr := cmp.Or(os.Getenv("DMESH_ADDR"), "localhost:50051")
	addr := flag.String("addr", defaultAddr, "the orchestrator's `host:port`; also DMESH_ADDR")
	key := flag.String("key", "", "the tenant's API key; also DMESH_API_KEY, which keeps it out of the process list")
	deadline := flag.Duration("deadline", 20*time.Second, "the time for the whole run; 0 leaves it to the tenant's tier")
	model := flag.String("model", "", "the model; empty for the tenant's default")
	var tools []string
	flag.Func("tool", "the `name` of a tool the agent may use, repeatable; left out: all that the tenant may", func(name string) error {
		tools = append(tools, name)
		return nil
	})
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: run [flags] PROMPT")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(exitUsage)
	}
	if *deadline < 0 {
		fmt.Fprintf(os.Stderr, "--deadline %v: write it as 500ms, 20s or 2m; 0 leaves it to the tier\n", *deadline)
		os.Exit(exitUsage)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // A second Ctrl-C is not waited on.
	request := &pb.RunRequest{Prompt: strings.Join(flag.Args(), " "), Model: *model, Tools: tools}
	finished, err := run(ctx, *addr, cmp.Or(*key, os.Getenv("DMESH_API_KEY")), *deadline, request)
	switch {
	case err != nil && ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "\nthe run was cancelled")
		os.Exit(exitCancelled)
	case err != nil:
		printError(err)
		os.Exit(exitFailed)
	}
	printFinished(finished)
	switch finished.Outcome {
	case pb.Outcome_OUTCOME_COMPLETED, pb.Outcome_OUTCOME_DEADLINE_SPENT:
	default:
		os.Exit(exitFailed)
	}
}

// run watches a run to its end, printing its events.
func run(ctx context.Context, addr, key string, deadline time.Duration, request *pb.RunRequest) (*pb.RunFinished, error) {
	client, err := deadlinemesh.Dial(addr, key)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	var finished *pb.RunFinished
	show := printer{toolNames: map[string]string{}}
	for event, err := range client.Run(ctx, request) {
		if err != nil {
			return nil, err
		}
		show.event(event)
		finished = cmp.Or(event.GetFinished(), finished)
	}
	if finished == nil {
		return nil, errors.New("the stream ended before the run did; GetRun tells how the run ended")
	}
	return finished, nil
}

// printer prints events: text as it flows, everything else on a line of its own.
type printer struct {
	midLine   bool
	toolNames map[string]string // By call id.
}

func (p *printer) event(event *pb.RunResponse) {
	switch e := event.Event.(type) {
	case *pb.RunResponse_Started:
		grant := e.Started.Grant
		p.line(event, "run %s: %s tier, %.1f s granted, model %s",
			e.Started.RunId, grant.GetTier(), float64(grant.GetGrantedUs())/1e6, e.Started.Model)
	case *pb.RunResponse_Text:
		fmt.Print(e.Text.Text)
		p.midLine = !strings.HasSuffix(e.Text.Text, "\n")
	case *pb.RunResponse_ToolCallStarted:
		call := e.ToolCallStarted.Call
		p.toolNames[call.GetId()] = call.GetName()
		p.line(event, "tool %s %s, %.1f s left",
			call.GetName(), call.GetArgumentsJson(), float64(e.ToolCallStarted.RemainingUs)/1e6)
	case *pb.RunResponse_ToolCallProgress:
		progress := e.ToolCallProgress
		p.line(event, "tool %s %.0f%% %s", p.toolNames[progress.CallId], 100*progress.Fraction, progress.Message)
	case *pb.RunResponse_ToolCallFinished:
		result := e.ToolCallFinished
		p.line(event, "tool %s %s after %.1f ms",
			result.Name, strings.TrimPrefix(result.Status.String(), "TOOL_STATUS_"), float64(result.ElapsedUs)/1e3)
	}
}

func (p *printer) line(event *pb.RunResponse, format string, args ...any) {
	if p.midLine {
		fmt.Println()
		p.midLine = false
	}
	fmt.Printf("[%9.1f ms] %s\n", float64(event.ElapsedUs)/1e3, fmt.Sprintf(format, args...))
}

func printFinished(finished *pb.RunFinished) {
	title := "answer"
	if finished.Partial {
		title = "PARTIAL answer"
	}
	fmt.Printf("\n--- %s ---\n%s\n", title, finished.Answer)

	fmt.Printf("\noutcome  %s\n", strings.TrimPrefix(finished.Outcome.String(), "OUTCOME_"))
	if finished.Cause != pb.Cause_CAUSE_UNSPECIFIED {
		fmt.Printf("cause    %s: %s\n", strings.TrimPrefix(finished.Cause.String(), "CAUSE_"), finished.Detail)
	}

	ledger := finished.GetLedger()
	row := func(name string, us int64) {
		fmt.Printf("%-16s %10.1f %6.1f%%\n", name, float64(us)/1e3, 100*float64(us)/float64(max(ledger.GetElapsedUs(), 1)))
	}
	fmt.Printf("\n%-16s %10s %7s\n", "phase", "ms", "share")
	for _, phase := range ledger.GetPhases() {
		row(strings.ToLower(strings.TrimPrefix(phase.Phase.String(), "PHASE_")), phase.SpentUs)
	}
	row("unattributed", ledger.GetUnattributedUs())
	row("elapsed", ledger.GetElapsedUs())
	fmt.Printf("%-16s %10.1f\n", "granted", float64(ledger.GetGrantedUs())/1e3)
}

func printError(err error) {
	fmt.Fprintf(os.Stderr, "\nerror: %v\n", err)
	if e := new(deadlinemesh.Error); errors.As(err, &e) {
		for _, violation := range e.Violations {
			fmt.Fprintf(os.Stderr, "  %s: %s\n", violation.Field, violation.Description)
		}
		if e.RetryAfter > 0 {
			fmt.Fprintf(os.Stderr, "  try again in %v\n", e.RetryAfter)
		}
	}
}
