"""A gRPC server on 8000: /thaw.Test/Once says what it is told, /thaw.Test/Stream all of it again, piece by piece, /thaw.Test/Who which replica it is."""

import concurrent.futures
import json

import grpc


def who(_request, _context):
    with open("/run/thaw/identity.json", encoding="utf-8") as file:
        return json.load(file)["replica"].encode()


METHODS = {
    "Once": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
    "Stream": grpc.stream_stream_rpc_method_handler(lambda requests, context: requests),
    "Who": grpc.unary_unary_rpc_method_handler(who),
}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("thaw.Test", METHODS)])
server.add_insecure_port("0.0.0.0:8000")
server.start()
server.wait_for_termination()
