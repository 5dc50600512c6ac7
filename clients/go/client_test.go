package deadlinemesh

import (
	"context"
	"errors"
	"net"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "deadlinemesh.dev/clients/go/gen/deadlinemesh/v1"
)

type stream = grpc.ServerStreamingServer[pb.RunResponse]

// orchestrator is a fake whose Run is the test's.
type orchestrator struct {
	pb.UnimplementedOrchestratorServiceServer
	run func(*pb.RunRequest, stream) error
}

func (o *orchestrator) Run(req *pb.RunRequest, s stream) error { return o.run(req, s) }

func (o *orchestrator) GetRun(context.Context, *pb.GetRunRequest) (*pb.GetRunResponse, error) {
	return nil, status.Error(codes.NotFound, "no such run")
}

// serve serves run in memory.
func serve(t *testing.T, run func(*pb.RunRequest, stream) error) *bufconn.Listener {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	pb.RegisterOrchestratorServiceServer(server, &orchestrator{run: run})
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return listener
}

// dial serves run in memory and gives a client of it.
func dial(t *testing.T, run func(*pb.RunRequest, stream) error) *Client {
	t.Helper()
	listener := serve(t, run)
	inMemory := func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }
	client, err := Dial("localhost", "s3cret", grpc.WithContextDialer(inMemory))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// drain ranges over a whole run.
func drain(ctx context.Context, client *Client) (events []*pb.RunResponse, err error) {
	for event, err := range client.Run(ctx, &pb.RunRequest{Prompt: "hello"}) {
		if err != nil {
			return events, err
		}
		events = append(events, event)
	}
	return events, nil
}

func started() *pb.RunResponse {
	return &pb.RunResponse{Event: &pb.RunResponse_Started{Started: &pb.RunStarted{}}}
}

func finished(answer string) *pb.RunResponse {
	return &pb.RunResponse{Event: &pb.RunResponse_Finished{Finished: &pb.RunFinished{Answer: answer}}}
}

func refusal(t *testing.T, code codes.Code, message string, details ...protoadapt.MessageV1) error {
	t.Helper()
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

func TestRunYieldsEventsInOrderAndCarriesTheKey(t *testing.T) {
	var authorization []string
	client := dial(t, func(req *pb.RunRequest, s stream) error {
		authorization = metadata.ValueFromIncomingContext(s.Context(), "authorization")
		return errors.Join(s.Send(started()), s.Send(finished(req.Prompt+" to you")))
	})
	events, err := drain(t.Context(), client)
	if err != nil || len(events) != 2 || events[1].GetFinished().GetAnswer() != "hello to you" {
		t.Errorf("got %v, %v", events, err)
	}
	if want := []string{"Bearer s3cret"}; !reflect.DeepEqual(authorization, want) {
		t.Errorf("authorization = %q, want %q", authorization, want)
	}
}

func TestTheLineEndOfAKeysFileIsLeftOut(t *testing.T) {
	var authorization []string
	listener := serve(t, func(_ *pb.RunRequest, s stream) error {
		authorization = metadata.ValueFromIncomingContext(s.Context(), "authorization")
		return nil
	})
	inMemory := func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }
	client, err := Dial("localhost", "s3cret\r\n", grpc.WithContextDialer(inMemory))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := drain(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if want := []string{"Bearer s3cret"}; !reflect.DeepEqual(authorization, want) {
		t.Errorf("authorization = %q, want %q", authorization, want)
	}
}

func TestAKeyThatNoHeaderCanHoldIsRefusedAndNotRepeated(t *testing.T) {
	for _, key := range []string{"s3cret\ns3cret", "s3cret\x00", "s3cr\u00e9t", "s3cret\xff"} {
		_, err := Dial("localhost", key)
		if err == nil || !strings.Contains(err.Error(), "no header may have") || strings.Contains(err.Error(), "s3c") {
			t.Errorf("Dial with %q gave %v", key, err)
		}
	}
}

// muted is a connection on which nothing is sent any more once it is silent.
type muted struct {
	net.Conn
	silent *atomic.Bool
}

func (m muted) Write(b []byte) (int, error) {
	if m.silent.Load() {
		return len(b), nil
	}
	return m.Conn.Write(b)
}

func TestARunWhoseConnectionHasGoneSilentFailsAfter40Seconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := serve(t, func(_ *pb.RunRequest, s stream) error {
			err := s.Send(started())
			<-s.Context().Done()
			return err
		})
		var silent atomic.Bool
		inMemory := func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := listener.DialContext(ctx)
			return muted{conn, &silent}, err
		}
		client, err := Dial("127.0.0.1:1", "s3cret", grpc.WithContextDialer(inMemory))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		var last error
		var since time.Time
		for _, last = range client.Run(t.Context(), &pb.RunRequest{}) {
			if last == nil {
				silent.Store(true)
				since = time.Now()
			}
		}
		if took := time.Since(since); status.Code(last) != codes.Unavailable || took < 40*time.Second || took > time.Minute {
			t.Errorf("after %v: %v, want code %v after 40 s", took, last, codes.Unavailable)
		}
	})
}

func TestTheContextsDeadlineTravelsAndNoOther(t *testing.T) {
	var remaining time.Duration
	var limited bool
	client := dial(t, func(_ *pb.RunRequest, s stream) error {
		var deadline time.Time
		deadline, limited = s.Context().Deadline()
		remaining = time.Until(deadline)
		return nil
	})
	if _, err := drain(t.Context(), client); err != nil || limited {
		t.Errorf("without a deadline: limited = %v, err = %v", limited, err)
	}
	const budget = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	if _, err := drain(ctx, client); err != nil || !limited || remaining > budget || remaining < budget/2 {
		t.Errorf("with a deadline of %v: remaining = %v, limited = %v, err = %v", budget, remaining, limited, err)
	}
}

// exactValues gives what a call has said exactly of its deadline.
func exactValues(s stream) []string {
	return metadata.ValueFromIncomingContext(s.Context(), "deadline-remaining-us")
}

func TestTheDeadlineIsSentExactlyToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var exact, kept []string
		client := dial(t, func(_ *pb.RunRequest, s stream) error {
			exact, kept = exactValues(s), metadata.ValueFromIncomingContext(s.Context(), "x-mine")
			return nil
		})
		defer client.Close()
		for timeout, want := range map[time.Duration]string{
			20 * time.Second: "19999850", 300 * time.Second: "299999850", 1500*time.Millisecond + 999: "1499850",
		} {
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "x-mine", "kept"), timeout)
			if _, err := drain(ctx, client); err != nil || !reflect.DeepEqual(exact, []string{want}) {
				t.Errorf("of %v was sent %q, want %q; err = %v", timeout, exact, want, err)
			}
			cancel()
			if want := []string{"kept"}; !reflect.DeepEqual(kept, want) {
				t.Errorf("x-mine = %q, want %q", kept, want)
			}
		}
		if _, err := drain(t.Context(), client); err != nil || exact != nil {
			t.Errorf("without a deadline was sent %q; err = %v", exact, err)
		}
	})
}

func TestTimeSpentOnConnectingIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var exact []string
		listener := serve(t, func(_ *pb.RunRequest, s stream) error {
			exact = exactValues(s)
			return nil
		})
		slow := func(ctx context.Context, _ string) (net.Conn, error) {
			time.Sleep(time.Second)
			return listener.DialContext(ctx)
		}
		client, err := Dial("localhost", "s3cret", grpc.WithContextDialer(slow))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := drain(ctx, client); err != nil || !reflect.DeepEqual(exact, []string{"18999850"}) {
			t.Errorf("sent %q of 19 s, err = %v", exact, err)
		}
	})
}

func TestTheDeadlineIsSentExactlyWithUnaryCalls(t *testing.T) {
	got := make(chan []string, 1)
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			got <- metadata.ValueFromIncomingContext(ctx, "deadline-remaining-us")
			return handle(ctx, req)
		}))
	pb.RegisterOrchestratorServiceServer(server, &orchestrator{})
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	inMemory := func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }
	client, err := Dial("localhost", "s3cret", grpc.WithContextDialer(inMemory))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client.GetRun(ctx, &pb.GetRunRequest{RunId: "gone"})
	if exact := <-got; len(exact) != 1 || exact[0] > "59999850" || exact[0] < "30000000" {
		t.Errorf("of a minute was sent %q", exact)
	}
}

func TestLeavingTheLoopCancelsTheHandler(t *testing.T) {
	stopped := make(chan error, 1)
	client := dial(t, func(_ *pb.RunRequest, s stream) error {
		err := s.Send(started())
		<-s.Context().Done()
		stopped <- errors.Join(err, s.Context().Err())
		return nil
	})
	for _, err := range client.Run(t.Context(), &pb.RunRequest{}) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Errorf("handler ended with %v, want %v", err, context.Canceled)
	}
}

func TestCancellingTheContextEndsTheLoopWithCanceled(t *testing.T) {
	client := dial(t, func(_ *pb.RunRequest, s stream) error {
		err := s.Send(started())
		<-s.Context().Done()
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for _, last = range client.Run(ctx, &pb.RunRequest{}) {
		cancel()
	}
	if status.Code(last) != codes.Canceled {
		t.Errorf("last error = %v, want code %v", last, codes.Canceled)
	}
}

func TestAnAnswerStandsWhenTheStatusBehindItIsLost(t *testing.T) {
	client := dial(t, func(_ *pb.RunRequest, s stream) error {
		return errors.Join(s.Send(finished("partial")), status.Error(codes.DeadlineExceeded, "too late"))
	})
	events, err := drain(t.Context(), client)
	if err != nil || len(events) != 1 {
		t.Errorf("got %v, %v; want the answer and no error", events, err)
	}
}

func TestErrorsUnpackTheStatusDetails(t *testing.T) {
	client := dial(t, func(*pb.RunRequest, stream) error {
		return refusal(t, codes.ResourceExhausted, "too many runs",
			&errdetails.ErrorInfo{Reason: "SHED", Domain: "deadlinemesh", Metadata: map[string]string{"hop": "orchestrator"}},
			&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
				{Field: "model", Description: `choose one of "small", "large"`},
			}},
			&errdetails.RetryInfo{RetryDelay: durationpb.New(1500 * time.Millisecond)},
		)
	})
	_, err := drain(t.Context(), client)
	var got *Error
	if !errors.As(err, &got) {
		t.Fatalf("err = %#v, want an *Error", err)
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("status.Code = %v", status.Code(err))
	}
	want := &Error{
		Code:       codes.ResourceExhausted,
		Message:    "too many runs",
		Reason:     "SHED",
		Cause:      pb.Cause_CAUSE_SHED,
		Metadata:   map[string]string{"hop": "orchestrator"},
		Violations: []Violation{{"model", `choose one of "small", "large"`}},
		RetryAfter: 1500 * time.Millisecond,
		status:     got.status,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if text := "RESOURCE_EXHAUSTED: too many runs (SHED)"; got.Error() != text {
		t.Errorf("Error() = %q, want %q", got.Error(), text)
	}
}

func TestAnotherDomainsErrorInfoIsNoReason(t *testing.T) {
	client := dial(t, func(*pb.RunRequest, stream) error {
		return refusal(t, codes.Unavailable, "gateway", &errdetails.ErrorInfo{Reason: "SHED", Domain: "example.com"})
	})
	_, err := drain(t.Context(), client)
	if got := new(Error); !errors.As(err, &got) || got.Reason != "" || got.Cause != pb.Cause_CAUSE_UNSPECIFIED {
		t.Errorf("got %+v, want no reason", err)
	}
}

func TestUnaryCallsFailWithTheSameError(t *testing.T) {
	client := dial(t, nil)
	_, err := client.GetRun(t.Context(), &pb.GetRunRequest{RunId: "gone"})
	if got := new(Error); !errors.As(err, &got) || got.Code != codes.NotFound {
		t.Errorf("got %#v, want an *Error with %v", err, codes.NotFound)
	}
}

// twoPods serves at two addresses behind one name, and gives a client of the name and who has served how often.
func twoPods(t *testing.T, opts ...grpc.DialOption) (*Client, map[string]int) {
	t.Helper()
	served := map[string]int{}
	pods := map[string]*bufconn.Listener{}
	addresses := manual.NewBuilderWithScheme("test")
	var state resolver.State
	for _, name := range []string{"a", "b"} {
		pods[name] = serve(t, func(_ *pb.RunRequest, s stream) error {
			served[name]++ // one call at a time
			return s.Send(finished(name))
		})
		state.Addresses = append(state.Addresses, resolver.Address{Addr: name})
	}
	addresses.InitialState(state)
	inMemory := func(ctx context.Context, name string) (net.Conn, error) { return pods[name].DialContext(ctx) }
	client, err := Dial("test:///pods", "s3cret", append([]grpc.DialOption{
		grpc.WithResolvers(addresses),
		grpc.WithContextDialer(inMemory),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client, served
}

func TestCallsAreSpreadOverAllAddressesOfAName(t *testing.T) {
	client, served := twoPods(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for len(served) < 2 { // all go to the first until there is a connection to the second
		if _, err := drain(ctx, client); err != nil {
			t.Fatalf("served = %v, err = %v", served, err)
		}
	}
}

func TestAnOptionOverridesHowCallsAreSpread(t *testing.T) {
	client, served := twoPods(t, grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"pick_first": {}}]}`))
	for range 20 {
		if _, err := drain(t.Context(), client); err != nil {
			t.Fatal(err)
		}
	}
	if len(served) != 1 {
		t.Errorf("served = %v, want all by one", served)
	}
}

func TestOnlyLoopbackIsPlainByDefault(t *testing.T) {
	for addr, want := range map[string]bool{
		"localhost:50051": true, "127.0.0.1:50051": true, "[::1]:50051": true, "localhost": true,
		"mesh.example.com:443": false, "10.0.0.7:50051": false, "dns:///orchestrator:50051": false,
	} {
		if got := isLoopback(addr); got != want {
			t.Errorf("isLoopback(%q) = %v, want %v", addr, got, want)
		}
	}
}
