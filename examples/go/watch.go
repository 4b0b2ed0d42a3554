package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "example.com/ltxtrain/gen/go/ltxtrain/v1"
)

const (
	// Longer than the servers' heartbeat of 15 s, by so much that two may be lost.
	silence      = 45 * time.Second
	firstBackoff = 200 * time.Millisecond
	lastBackoff  = 10 * time.Second
)

// watchJob shows the events after a sequence, each once and in order, until the job ends. A stream that breaks or falls
// silent is opened again at the last sequence that was seen: keep it, and another process can go on from there.
func (s *suite) watchJob(ctx context.Context, name string, after int64, show func(int64, *pb.Event)) error {
	for failures := 0; ; failures++ {
		before := after
		ended, err := s.watchOnce(ctx, name, &after, show)
		if ended || ctx.Err() != nil {
			return ctx.Err()
		}
		switch status.Code(err) {
		case codes.NotFound, codes.Unauthenticated, codes.PermissionDenied, codes.OutOfRange, codes.InvalidArgument,
			codes.FailedPrecondition, codes.Unimplemented:
			// Another try with the same cursor would end the same way.
			return err
		}
		if after > before {
			failures = 0
		}
		select {
		case <-time.After(backoff(failures, err)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watchOnce shows what one stream brings; the cursor moves with it. Ended: the job has, and there is no more.
func (s *suite) watchOnce(
	ctx context.Context, name string, cursor *int64, show func(int64, *pb.Event),
) (ended bool, err error) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	alarm := time.AfterFunc(silence, leave)
	defer alarm.Stop()
	stream, err := s.train.WatchJob(ctx, &pb.WatchJobRequest{Name: name, AfterSequence: *cursor})
	if err != nil {
		return false, err
	}
	for heard := false; ; heard = true {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			// OK without a word: the job has ended, and the cursor is at its end.
			return !heard, status.Error(codes.Unavailable, "the stream ended before the job did")
		}
		if err != nil {
			return false, err
		}
		alarm.Reset(silence)
		// A heartbeat has no event.
		event := answer.GetEvent()
		if event == nil || answer.GetSequence() <= *cursor {
			continue
		}
		*cursor = answer.GetSequence()
		show(*cursor, event)
		switch event.GetLifecycle().GetState() {
		case pb.State_STATE_SUCCEEDED, pb.State_STATE_FAILED, pb.State_STATE_CANCELLED:
			return true, nil
		}
	}
}

// backoff has jitter, and is no shorter than the server asked for.
func backoff(failures int, lost error) time.Duration {
	limit := min(lastBackoff, firstBackoff<<min(failures, 30))
	delay := time.Duration(float64(limit) * (0.5 + rand.Float64()/2))
	for _, detail := range status.Convert(lost).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			delay = max(delay, min(info.GetRetryDelay().AsDuration(), lastBackoff))
		}
	}
	return delay
}
