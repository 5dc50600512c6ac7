#!/bin/sh
# Writes gen/ again from ../../protos. Needs Go and a Python with grpcio-tools, whose protoc is used.
set -eu
cd "$(dirname "$0")"

python=${PYTHON:-../../.venv/bin/python}
module=deadlinemesh.dev/clients/go

bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GOBIN=$bin go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2

rm -rf gen
PATH=$bin:$PATH "$python" -m grpc_tools.protoc -I ../../protos \
	--go_out=. --go_opt=module=$module \
	--go-grpc_out=. --go-grpc_opt=module=$module \
	../../protos/deadlinemesh/v1/*.proto
