// Sends an Identify, a Track and a batch of a hundred events, one of them bad.
//
//     node dist/src/send_events.js [HOST:PORT] [SERVICE_CONFIG]
//
// Unary calls are tried again by gRPC itself, as the service config says. A stream is the caller's to resume: from the
// first batch that was not answered. Each event has a message_id, so that whatever is sent twice is taken once.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

import { create } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";

import { type Event, EventSchema } from "../gen/pointillist_destination/v1/event_pb.js";
import {
  type BatchSendRequest,
  BatchSendRequestSchema,
  type BatchSendResponse,
  EventService,
  IdentifyRequestSchema,
  type IdentifyResponse,
  Outcome,
  TrackRequestSchema,
  type TrackResponse,
} from "../gen/pointillist_destination/v1/event_service_pb.js";
import { clientOf } from "./client.js";

// CANCELLED, where we did not cancel, is a connection that broke: its calls may have been stored or not.
const RESUMABLE = [grpc.status.UNAVAILABLE, grpc.status.CANCELLED];
const RESUMES_MOST = 60; // in a row, without an answer between them
const RESUME_DELAY = 1000; // milliseconds, where the server does not say
const BAD = 41; // the index of the event that nobody is the user of

const target = process.argv[2] ?? "localhost:50051";
const serviceConfig = readFileSync(process.argv[3] ?? "../../../deploy/service-config.json", "utf8");

/** Calls a unary method and awaits its answer. */
function call<Answer>(client: grpc.Client, method: string, request: object): Promise<Answer> {
  return new Promise((resolve, reject) => {
    (client as any)[method](request, (error: grpc.ServiceError | null, answer: Answer) =>
      error === null ? resolve(answer) : reject(error),
    );
  });
}

/** Sends batches and yields their answers, in order; a stream that ends early is opened again. */
async function* sendBatches(client: grpc.Client, batches: BatchSendRequest[]): AsyncGenerator<BatchSendResponse> {
  let resumes = 0;
  while (batches.length > 0) {
    const stream: grpc.ClientDuplexStream<BatchSendRequest, BatchSendResponse> = (client as any).batchSend();
    for (const batch of batches) {
      stream.write(batch);
    }
    stream.end();
    try {
      for await (const answer of stream) {
        batches = batches.slice(1);
        resumes = 0;
        yield answer;
      }
    } catch (error) {
      const { code, metadata } = error as grpc.ServiceError;
      resumes += 1;
      if (!RESUMABLE.includes(code) || resumes > RESUMES_MOST) {
        throw error;
      }
      const [pushback] = metadata.get("grpc-retry-pushback-ms");
      await sleep(pushback === undefined ? RESUME_DELAY : Number(pushback));
    }
  }
}

/** A hundred track messages; one has neither a userId nor an anonymousId. */
function hundredEvents(run: string): Event[] {
  return Array.from({ length: 100 }, (_, index) =>
    create(EventSchema, {
      type: {
        case: "track",
        value: {
          userId: index === BAD ? "" : "u-1",
          event: "Product Viewed",
          messageId: `${run}-${index}`,
          properties: { position: index },
        },
      },
    }),
  );
}

const run = `typescript-${process.hrtime.bigint()}-${Date.now()}`;
// A client is one connection, of whose calls 50 at most may wait for a delivery: a caller with more at a time, or with
// more than a hundred calls of any kind, makes a second one and takes them in turn.
const client: grpc.Client = new (clientOf(EventService))(target, grpc.credentials.createInsecure(), {
  "grpc.service_config": serviceConfig,
  "grpc.use_local_subchannel_pool": 1,
});

const identify = { userId: "u-1", messageId: `${run}-identify`, traits: { plan: "premium" } };
const identified = await call<IdentifyResponse>(client, "identify", create(IdentifyRequestSchema, { identify }));
console.log(`identify ${identified.receipt?.messageId}: OUTCOME_${Outcome[identified.receipt?.outcome ?? 0]}`);

const track = {
  userId: "u-1",
  event: "Order Completed",
  messageId: `${run}-track`,
  properties: { revenue: 25.5, currency: "USD" },
};
const tracked = await call<TrackResponse>(client, "track", create(TrackRequestSchema, { track }));
console.log(`track ${tracked.receipt?.messageId}: OUTCOME_${Outcome[tracked.receipt?.outcome ?? 0]}`);

const batch = create(BatchSendRequestSchema, { sequence: 1n, events: hundredEvents(run) });
for await (const answer of sendBatches(client, [batch])) {
  console.log(`batch ${answer.sequence}: ${answer.accepted} accepted, ${answer.rejections.length} refused`);
  for (const { index, messageId, status } of answer.rejections) {
    console.log(`event ${index} (${messageId}) refused: ${status?.message}`);
  }
}
client.close();
