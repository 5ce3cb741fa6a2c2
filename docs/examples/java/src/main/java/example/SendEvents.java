package example;

import com.google.gson.Gson;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import com.google.rpc.BadRequest;
import io.grpc.Channel;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.EnumSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import pointillist_destination.v1.EventOuterClass.Event;
import pointillist_destination.v1.EventOuterClass.Identify;
import pointillist_destination.v1.EventOuterClass.Track;
import pointillist_destination.v1.EventServiceGrpc;
import pointillist_destination.v1.EventServiceOuterClass.BatchSendRequest;
import pointillist_destination.v1.EventServiceOuterClass.BatchSendResponse;
import pointillist_destination.v1.EventServiceOuterClass.IdentifyRequest;
import pointillist_destination.v1.EventServiceOuterClass.Receipt;
import pointillist_destination.v1.EventServiceOuterClass.Rejection;
import pointillist_destination.v1.EventServiceOuterClass.TrackRequest;

/**
 * Sends an Identify, a Track and a batch of a hundred events, one of them bad: SendEvents [HOST:PORT] [SERVICE_CONFIG].
 *
 * <p>Unary calls are tried again by gRPC itself, as the service config says. A stream is the caller's to resume: from
 * the first batch that was not answered. Each event has a message_id, so that whatever is sent twice is taken once.
 */
public final class SendEvents {
  // CANCELLED, where we did not cancel, is a connection that broke: its calls may have been stored or not.
  private static final Set<Status.Code> RESUMABLE =
      EnumSet.of(Status.Code.UNAVAILABLE, Status.Code.CANCELLED);
  private static final int RESUMES_MOST = 60; // in a row, without an answer between them
  private static final long RESUME_DELAY = 1000; // milliseconds, where the server does not say
  private static final int BAD = 41; // the index of the event that nobody is the user of
  private static final Metadata.Key<String> PUSHBACK =
      Metadata.Key.of("grpc-retry-pushback-ms", Metadata.ASCII_STRING_MARSHALLER);

  public static void main(String[] arguments) throws Exception {
    String target = arguments.length > 0 ? arguments[0] : "localhost:50051";
    Path serviceConfig = Path.of(arguments.length > 1 ? arguments[1] : "../../../deploy/service-config.json");
    ManagedChannel channel = connect(target, serviceConfig);
    try {
      send(channel, "java-" + System.currentTimeMillis() + "-" + System.nanoTime());
    } finally {
      channel.shutdownNow();
    }
  }

  /**
   * Opens a channel that waits and tries again as the service config says.
   *
   * <p>Each has a connection of its own. At most 50 calls of a connection may wait for a delivery: who has more at a
   * time, or more than a hundred calls of any kind, opens a second channel and takes them in turn.
   */
  @SuppressWarnings("unchecked")
  private static ManagedChannel connect(String target, Path serviceConfig) throws IOException {
    Map<String, ?> config = new Gson().fromJson(Files.readString(serviceConfig), Map.class);
    return Grpc.newChannelBuilder(target, InsecureChannelCredentials.create())
        .defaultServiceConfig(config)
        .enableRetry()
        .build();
  }

  private static void send(Channel channel, String run) throws Exception {
    EventServiceGrpc.EventServiceBlockingStub events = EventServiceGrpc.newBlockingStub(channel);
    Identify identify =
        Identify.newBuilder()
            .setUserId("u-1")
            .setMessageId(run + "-identify")
            .setTraits(struct(Map.of("plan", text("premium"))))
            .build();
    show("identify", events.identify(IdentifyRequest.newBuilder().setIdentify(identify).build()).getReceipt());

    Track track =
        Track.newBuilder()
            .setUserId("u-1")
            .setEvent("Order Completed")
            .setMessageId(run + "-track")
            .setProperties(struct(Map.of("revenue", number(25.5), "currency", text("USD"))))
            .build();
    show("track", events.track(TrackRequest.newBuilder().setTrack(track).build()).getReceipt());

    BatchSendRequest batch =
        BatchSendRequest.newBuilder().setSequence(1).addAllEvents(hundredEvents(run)).build();
    sendBatches(channel, List.of(batch), SendEvents::show);
  }

  /** Sends batches and hands on their answers, in order; a stream that ends early is opened again. */
  private static void sendBatches(
      Channel channel, List<BatchSendRequest> batches, Consumer<BatchSendResponse> answered) throws Exception {
    Deque<BatchSendRequest> unanswered = new ArrayDeque<>(batches);
    for (int resumes = 0; !unanswered.isEmpty(); resumes++) {
      int before = unanswered.size();
      Throwable error = stream(channel, unanswered, answered).get();
      if (error == null) {
        continue;
      }
      if (unanswered.size() < before) {
        resumes = 0;
      }
      if (!RESUMABLE.contains(Status.fromThrowable(error).getCode()) || resumes > RESUMES_MOST) {
        throw Status.fromThrowable(error).asRuntimeException();
      }
      Metadata trailers = Status.trailersFromThrowable(error);
      String pushback = trailers == null ? null : trailers.get(PUSHBACK);
      Thread.sleep(pushback == null ? RESUME_DELAY : Long.parseLong(pushback));
    }
  }

  /** Runs one stream to its end; gives what ended it, or null if it ended well. */
  private static CompletableFuture<Throwable> stream(
      Channel channel, Deque<BatchSendRequest> unanswered, Consumer<BatchSendResponse> answered) {
    CompletableFuture<Throwable> ended = new CompletableFuture<>();
    List<BatchSendRequest> batches = List.copyOf(unanswered);
    StreamObserver<BatchSendRequest> requests =
        EventServiceGrpc.newStub(channel)
            .batchSend(
                new StreamObserver<>() {
                  @Override
                  public void onNext(BatchSendResponse answer) {
                    unanswered.removeFirst();
                    answered.accept(answer);
                  }

                  @Override
                  public void onError(Throwable error) {
                    ended.complete(error);
                  }

                  @Override
                  public void onCompleted() {
                    ended.complete(null);
                  }
                });
    batches.forEach(requests::onNext);
    requests.onCompleted();
    return ended;
  }

  /** A hundred track messages; one has neither a user_id nor an anonymous_id. */
  private static List<Event> hundredEvents(String run) {
    return IntStream.range(0, 100)
        .mapToObj(
            index ->
                Track.newBuilder()
                    .setUserId(index == BAD ? "" : "u-1")
                    .setEvent("Product Viewed")
                    .setMessageId(run + "-" + index)
                    .setProperties(struct(Map.of("position", number(index))))
                    .build())
        .map(track -> Event.newBuilder().setTrack(track).build())
        .toList();
  }

  private static void show(String method, Receipt receipt) {
    System.out.printf("%s %s: %s%n", method, receipt.getMessageId(), receipt.getOutcome());
  }

  private static void show(BatchSendResponse answer) {
    System.out.printf(
        "batch %d: %d accepted, %d refused%n",
        answer.getSequence(), answer.getAccepted(), answer.getRejectionsCount());
    for (Rejection rejection : answer.getRejectionsList()) {
      for (BadRequest.FieldViolation violation : faultsOf(rejection)) {
        System.out.printf(
            "event %d (%s) refused: %s %s%n",
            rejection.getIndex(), rejection.getMessageId(), violation.getField(), violation.getDescription());
      }
    }
  }

  /** What is wrong with a refused event. */
  private static List<BadRequest.FieldViolation> faultsOf(Rejection rejection) {
    return rejection.getStatus().getDetailsList().stream()
        .filter(detail -> detail.is(BadRequest.class))
        .flatMap(
            detail -> {
              try {
                return detail.unpack(BadRequest.class).getFieldViolationsList().stream();
              } catch (InvalidProtocolBufferException error) {
                throw new IllegalStateException(error);
              }
            })
        .toList();
  }

  private static Struct struct(Map<String, Value> fields) {
    return Struct.newBuilder().putAllFields(fields).build();
  }

  private static Value text(String value) {
    return Value.newBuilder().setStringValue(value).build();
  }

  private static Value number(double value) {
    return Value.newBuilder().setNumberValue(value).build();
  }

  private SendEvents() {}
}
