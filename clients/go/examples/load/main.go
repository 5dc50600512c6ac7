// Load starts a run for each JSON object that it reads, a line each, and prints how the run ended. `dmesh bench exact` drives it.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"sync"
	"time"

	deadlinemesh "deadlinemesh.dev/clients/go"
	pb "deadlinemesh.dev/clients/go/gen/deadlinemesh/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

type order struct {
	ID         int    `json:"id"`
	DeadlineMS int64  `json:"deadline_ms"`
	Prompt     string `json:"prompt"`
	Plain      bool   `json:"plain"` // By the generated stub, so with grpc-timeout alone.
}

type ended struct {
	ID      int    `json:"id"`
	HeldUS  int64  `json:"held_us"` // What was asked for less what the run may use.
	LeftUS  int64  `json:"left_us"` // Of the deadline, when the run ended.
	Outcome string `json:"outcome"` // Empty where there was no answer.
	Error   string `json:"error"`
}

func main() {
	addr, key := os.Getenv("DMESH_ADDR"), os.Getenv("DMESH_API_KEY")
	client, err := deadlinemesh.Dial(addr, key)
	if err != nil {
		log.Fatal(err)
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	plain := &deadlinemesh.Client{OrchestratorServiceClient: pb.NewOrchestratorServiceClient(conn)}
	withKey := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+key)
	// Connections are opened before any deadline runs.
	if _, err := client.ListRuns(context.Background(), &pb.ListRunsRequest{}); err != nil {
		log.Fatal(err)
	}
	if _, err := plain.ListRuns(withKey, &pb.ListRunsRequest{}); err != nil {
		log.Fatal(err)
	}

	var atWork sync.WaitGroup
	var printing sync.Mutex
	out := json.NewEncoder(os.Stdout)
	out.Encode(map[string]bool{"ready": true})
	orders := json.NewDecoder(os.Stdin)
	for {
		var o order
		if orders.Decode(&o) != nil {
			break
		}
		atWork.Go(func() {
			var end ended
			if o.Plain {
				end = run(withKey, plain, o)
			} else {
				end = run(context.Background(), client, o)
			}
			printing.Lock()
			defer printing.Unlock()
			out.Encode(end)
		})
	}
	atWork.Wait()
}

func run(ctx context.Context, client *deadlinemesh.Client, o order) ended {
	end := ended{ID: o.ID}
	began, timeout := time.Now(), time.Duration(o.DeadlineMS)*time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for event, err := range client.Run(ctx, &pb.RunRequest{Prompt: o.Prompt}) {
		if err != nil {
			end.Error = err.Error()
			break
		}
		if grant := event.GetStarted().GetGrant(); grant != nil {
			end.HeldUS = timeout.Microseconds() - (grant.GrantedUs - grant.ReserveUs)
		}
		if finished := event.GetFinished(); finished != nil {
			end.LeftUS = (timeout - time.Since(began)).Microseconds()
			end.Outcome = finished.Outcome.String()
		}
	}
	return end
}
