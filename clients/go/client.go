// Package deadlinemesh runs agents on a Deadline Mesh.
//
// The deadline of a run is the deadline of its context, and nothing else; every call carries it exactly. Without one the tenant's
// tier decides. A run whose time is spent is no error: its last event carries the partial answer.
package deadlinemesh

import (
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	pb "deadlinemesh.dev/clients/go/gen/deadlinemesh/v1"
)

// spread is gRPC's configuration of calls in turn to all addresses of a name. By its default all calls go to one of them.
const spread = `{"loadBalancingConfig": [{"round_robin": {}}]}`

// alive has a server asked for a sign of life after 20 s of silence during a call, and given up after as many again.
var alive = keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 20 * time.Second}

// Client speaks to an orchestrator on behalf of one tenant. It is safe for concurrent use.
//
// GetRun, ListRuns and CancelRun are those of the generated stub; their errors are *[Error] too.
type Client struct {
	pb.OrchestratorServiceClient
	conn *grpc.ClientConn
}

// Dial prepares a client for the orchestrator at addr, whose calls carry the tenant's API key. It connects when first used.
//
// Calls are spread over all addresses that addr stands for. The connection is TLS, except to a loopback address, where it is
// plain. White space around the key, such as the line end of its file, is left out; a key that no header can hold is an error.
//
// An option, such as [grpc.WithTransportCredentials], [grpc.WithDefaultServiceConfig] or [grpc.WithKeepaliveParams], overrides what
// Dial has chosen.
func Dial(addr, apiKey string, opts ...grpc.DialOption) (*Client, error) {
	key, err := checkedKey(apiKey)
	if err != nil {
		return nil, err
	}
	transport := credentials.NewTLS(nil)
	if isLoopback(addr) {
		transport = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(addr, append([]grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithPerRPCCredentials(bearer(key)),
		grpc.WithPerRPCCredentials(exactDeadline{}),
		grpc.WithChainUnaryInterceptor(typedErrors),
		grpc.WithDefaultServiceConfig(spread),
		grpc.WithKeepaliveParams(alive),
	}, opts...)...)
	if err != nil {
		return nil, err
	}
	return &Client{pb.NewOrchestratorServiceClient(conn), conn}, nil
}

// Close cancels the runs that are being watched and closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Run runs an agent and yields what happens; the last event is a RunFinished. Ranging over the result starts the run, and
// leaving the loop, like the end of ctx, cancels it. An error is an *[Error] and is yielded last.
func (c *Client) Run(ctx context.Context, req *pb.RunRequest, opts ...grpc.CallOption) iter.Seq2[*pb.RunResponse, error] {
	return func(yield func(*pb.RunResponse, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.OrchestratorServiceClient.Run(ctx, req, opts...)
		finished := false
		for err == nil {
			var event *pb.RunResponse
			if event, err = stream.Recv(); err != nil {
				break
			}
			finished = finished || event.GetFinished() != nil
			if !yield(event, nil) {
				return
			}
		}
		// An answer that came just in time stands, even if the deadline outran the status behind it.
		if !finished && !errors.Is(err, io.EOF) {
			yield(nil, asError(err))
		}
	}
}

// checkedKey gives the key as it is sent. Its error does not repeat it.
func checkedKey(key string) (string, error) {
	key = strings.TrimSpace(key)
	if strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", errors.New("the API key has characters that no header may have: give the key itself, in one line")
	}
	return key, nil
}

// bearer is an API key. It asks for no transport security: a plain connection is either a loopback one or the explicit
// choice of the caller, who may have a sidecar that encrypts.
type bearer string

func (key bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(key)}, nil
}

func (bearer) RequireTransportSecurity() bool { return false }

// leastTransit is the least time from here to where a call is read.
const leastTransit = 150 * time.Microsecond

// exactDeadline sends what remains of a call's deadline in whole microseconds, beside grpc-timeout, which on its way may be rounded
// up. As credentials it is asked for them when the call's headers are written, and not while the call waits for a connection.
type exactDeadline struct{}

func (exactDeadline) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	deadline, limited := ctx.Deadline()
	if !limited {
		return nil, nil
	}
	remaining := max(0, time.Until(deadline)-leastTransit)
	return map[string]string{"deadline-remaining-us": strconv.FormatInt(remaining.Microseconds(), 10)}, nil
}

func (exactDeadline) RequireTransportSecurity() bool { return false }

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func typedErrors(
	ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	if err := invoke(ctx, method, req, reply, cc, opts...); err != nil {
		return asError(err)
	}
	return nil
}
