package deadlinemesh

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "deadlinemesh.dev/clients/go/gen/deadlinemesh/v1"
)

const errorDomain = "deadlinemesh"

// Error is the gRPC status of a failed call with its details unpacked. [status.FromError] gives the status itself.
type Error struct {
	Code    codes.Code
	Message string
	// Reason says why the mesh refused or stopped the call; empty when the status does not come from the mesh.
	Reason string
	// Cause is the reason as one of the contract's causes; unspecified when it is none.
	Cause pb.Cause
	// Metadata is what the mesh says of the reason: hop, phase, granted_ms, elapsed_ms.
	Metadata map[string]string
	// Violations name the fields of the request that were refused, and the valid choices.
	Violations []Violation
	// RetryAfter is how long to wait before another try; zero when the mesh does not know.
	RetryAfter time.Duration

	status *status.Status
}

// Violation is one field of a request that was refused, and why.
type Violation struct {
	Field, Description string
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%s: %s", code.Code(e.Code), e.Message)
	if e.Cause != pb.Cause_CAUSE_UNSPECIFIED {
		text += fmt.Sprintf(" (%s)", e.Reason)
	}
	return text
}

// GRPCStatus makes [status.Code] and [status.FromError] work.
func (e *Error) GRPCStatus() *status.Status { return e.status }

func asError(err error) *Error {
	st := status.Convert(err)
	e := &Error{Code: st.Code(), Message: st.Message(), status: st}
	for _, detail := range st.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == errorDomain {
				e.Reason = detail.Reason
				e.Cause = pb.Cause(pb.Cause_value["CAUSE_"+detail.Reason])
				e.Metadata = detail.Metadata
			}
		case *errdetails.BadRequest:
			for _, v := range detail.FieldViolations {
				e.Violations = append(e.Violations, Violation{v.Field, v.Description})
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = detail.RetryDelay.AsDuration()
		}
	}
	return e
}
