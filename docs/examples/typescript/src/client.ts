// Clients of @grpc/grpc-js for the services that protoc-gen-es describes.
import { type DescMessage, type DescService, fromBinary, toBinary } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";

function serializer(schema: DescMessage) {
  return (message: any) => Buffer.from(toBinary(schema, message));
}

function deserializer(schema: DescMessage) {
  return (bytes: Buffer) => fromBinary(schema, bytes);
}

/** Makes the class of a service's clients; its methods are named as in the proto, with a small first letter. */
export function clientOf(service: DescService): grpc.ServiceClientConstructor {
  const methods: Record<string, grpc.MethodDefinition<any, any>> = {};
  for (const method of service.methods) {
    methods[method.localName] = {
      path: `/${service.typeName}/${method.name}`,
      requestStream: method.methodKind === "client_streaming" || method.methodKind === "bidi_streaming",
      responseStream: method.methodKind === "server_streaming" || method.methodKind === "bidi_streaming",
      requestSerialize: serializer(method.input),
      requestDeserialize: deserializer(method.input),
      responseSerialize: serializer(method.output),
      responseDeserialize: deserializer(method.output),
    };
  }
  return grpc.makeClientConstructor(methods, service.name);
}
