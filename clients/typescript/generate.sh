#!/bin/sh
# Writes src/gen/ again from ../../protos. Needs npm and a Python with grpcio-tools, whose protoc is used, and
# grpcio-status, which brings google.rpc.
set -eu
cd "$(dirname "$0")"

python=${PYTHON:-../../.venv/bin/python}
google=$("$python" -c 'import google.rpc; print(google.rpc.__path__[0])')
# Before the stubs are removed, so that they stay where it fails.
[ -x node_modules/.bin/protoc-gen-ts_proto ] || npm ci

rm -rf src/gen
mkdir -p src/gen
"$python" -m grpc_tools.protoc -I ../../protos -I "${google%/google/rpc}" \
	--plugin=node_modules/.bin/protoc-gen-ts_proto --ts_proto_out=src/gen \
	--ts_proto_opt=outputServices=grpc-js,env=node,importSuffix=.js \
	--ts_proto_opt=oneof=unions-value,stringEnums=true,removeEnumPrefix=true \
	--ts_proto_opt=outputJsonMethods=false \
	../../protos/deadlinemesh/v1/*.proto google/rpc/status.proto google/rpc/error_details.proto
