// Sends an Identify, a Track and a batch of a hundred events, one of them bad.
//
//	send_events [HOST:PORT] [SERVICE_CONFIG]
//
// Unary calls are tried again by gRPC itself, as the service config says. A stream is the caller's to resume: from the
// first batch that was not answered. Each event has a message_id, so that whatever is sent twice is taken once.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	pb "example/gen/pointillist_destination/v1"
)

const (
	// Canceled, where we did not cancel, is a connection that broke: its calls may have been stored or not.
	resumesMost = 60          // in a row, without an answer between them
	resumeDelay = time.Second // where the server does not say
	bad         = 41          // the index of the event that nobody is the user of
)

func argument(index int, otherwise string) string {
	if len(os.Args) > index {
		return os.Args[index]
	}
	return otherwise
}

func properties(values map[string]any) *structpb.Struct {
	made, err := structpb.NewStruct(values)
	if err != nil {
		log.Fatal(err) // a value that JSON does not have
	}
	return made
}

// sendBatches sends batches and hands on their answers, in order; a stream that ends early is opened again.
func sendBatches(
	ctx context.Context, events pb.EventServiceClient, batches []*pb.BatchSendRequest, answered func(*pb.BatchSendResponse),
) error {
	resumes := 0
	for len(batches) > 0 {
		taken, delay, err := stream(ctx, events, batches, answered)
		batches = batches[taken:]
		if taken > 0 {
			resumes = 0
		}
		if err == nil {
			continue
		}
		resumes++
		if code := status.Code(err); (code != codes.Unavailable && code != codes.Canceled) || resumes > resumesMost {
			return err
		}
		time.Sleep(delay)
	}
	return nil
}

// stream runs one stream to its end; it returns how many batches were answered and when trying again makes sense.
func stream(
	ctx context.Context, events pb.EventServiceClient, batches []*pb.BatchSendRequest, answered func(*pb.BatchSendResponse),
) (int, time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	call, err := events.BatchSend(ctx)
	if err != nil {
		return 0, resumeDelay, err
	}
	go func() {
		for _, batch := range batches {
			if call.Send(batch) != nil {
				return // the reader is told why
			}
		}
		_ = call.CloseSend()
	}()
	for taken := 0; ; taken++ {
		answer, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return taken, 0, nil
		}
		if err != nil {
			delay := resumeDelay
			if told := call.Trailer().Get("grpc-retry-pushback-ms"); len(told) == 1 {
				if milliseconds, err := strconv.Atoi(told[0]); err == nil && milliseconds >= 0 {
					delay = time.Duration(milliseconds) * time.Millisecond
				}
			}
			return taken, delay, err
		}
		answered(answer)
	}
}

// hundredEvents are track messages; one has neither a user_id nor an anonymous_id.
func hundredEvents(run string) []*pb.Event {
	events := make([]*pb.Event, 100)
	for index := range events {
		track := &pb.Track{
			UserId: "u-1", Event: "Product Viewed", MessageId: fmt.Sprintf("%s-%d", run, index),
			Properties: properties(map[string]any{"position": index}),
		}
		if index == bad {
			track.UserId = ""
		}
		events[index] = &pb.Event{Type: &pb.Event_Track{Track: track}}
	}
	return events
}

// show says what became of a batch, with each fault of each refused event.
func show(answer *pb.BatchSendResponse) {
	fmt.Printf("batch %d: %d accepted, %d refused\n", answer.Sequence, answer.Accepted, len(answer.Rejections))
	for _, rejection := range answer.Rejections {
		for _, detail := range status.FromProto(rejection.Status).Details() {
			if badRequest, ok := detail.(*errdetails.BadRequest); ok {
				for _, violation := range badRequest.FieldViolations {
					fmt.Printf("event %d (%s) refused: %s %s\n",
						rejection.Index, rejection.MessageId, violation.Field, violation.Description)
				}
			}
		}
	}
}

func main() {
	serviceConfig, err := os.ReadFile(argument(2, "../../../deploy/service-config.json"))
	if err != nil {
		log.Fatal(err)
	}
	// A channel is one connection, of whose calls 50 at most may wait for a delivery: a caller with more at a time, or with
	// more than a hundred calls of any kind, makes a second one and takes them in turn.
	channel, err := grpc.NewClient(
		argument(1, "localhost:50051"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(serviceConfig)),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer channel.Close()
	ctx, events := context.Background(), pb.NewEventServiceClient(channel)
	run := fmt.Sprintf("go-%d", time.Now().UnixNano())

	identified, err := events.Identify(ctx, &pb.IdentifyRequest{Identify: &pb.Identify{
		UserId: "u-1", MessageId: run + "-identify", Traits: properties(map[string]any{"plan": "premium"}),
	}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("identify %s: %s\n", identified.Receipt.MessageId, identified.Receipt.Outcome)

	tracked, err := events.Track(ctx, &pb.TrackRequest{Track: &pb.Track{
		UserId: "u-1", Event: "Order Completed", MessageId: run + "-track",
		Properties: properties(map[string]any{"revenue": 25.5, "currency": "USD"}),
	}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("track %s: %s\n", tracked.Receipt.MessageId, tracked.Receipt.Outcome)

	batch := &pb.BatchSendRequest{Sequence: 1, Events: hundredEvents(run)}
	if err := sendBatches(ctx, events, []*pb.BatchSendRequest{batch}, show); err != nil {
		log.Fatal(err)
	}
}
