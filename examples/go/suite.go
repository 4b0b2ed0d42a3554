package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	pb "example.com/ltxtrain/gen/go/ltxtrain/v1"
)

// Unary calls have a deadline, and are tried again when nobody answers. A job is made once all the same: its request
// has an id.
const serviceConfig = `{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s",
"maxBackoff": "2s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]}`

const unaryDeadline = 10 * time.Second

// suite has clients of the services that a job needs; Train itself asks the preprocess service.
type suite struct {
	train       pb.TrainServiceClient
	ingest      pb.IngestServiceClient
	connections []*grpc.ClientConn
}

// connect reads the variables that the Python client reads too. Nothing is dialled before the first call.
func connect() (*suite, error) {
	made := &suite{}
	dial := func(variable, usual string) (*grpc.ClientConn, error) {
		address, secure := os.Getenv(variable), insecure.NewCredentials()
		if address == "" {
			address = usual
		}
		root, token := os.Getenv("LTXTRAIN_TLS_ROOT"), os.Getenv("LTXTRAIN_TOKEN")
		if root != "" {
			var err error
			if secure, err = credentials.NewClientTLSFromFile(root, ""); err != nil {
				return nil, invalidError("LTXTRAIN_TLS_ROOT: " + err.Error())
			}
		} else if token != "" && !isLoopback(address) {
			return nil, invalidError("The token would go to " + address + " unencrypted. Set LTXTRAIN_TLS_ROOT.")
		}
		connection, err := grpc.NewClient(address,
			grpc.WithTransportCredentials(secure),
			grpc.WithDefaultServiceConfig(serviceConfig),
			// The servers accept a ping each 5 s.
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
			grpc.WithUnaryInterceptor(unary(token)),
			grpc.WithStreamInterceptor(stream(token)),
		)
		if err != nil {
			return nil, invalidError(variable + ": " + err.Error())
		}
		made.connections = append(made.connections, connection)
		return connection, nil
	}
	train, err := dial("LTXTRAIN_TRAIN", "127.0.0.1:7003")
	if err != nil {
		return nil, err
	}
	ingest, err := dial("LTXTRAIN_INGEST", "127.0.0.1:7001")
	if err != nil {
		made.close()
		return nil, err
	}
	made.train, made.ingest = pb.NewTrainServiceClient(train), pb.NewIngestServiceClient(ingest)
	return made, nil
}

func (s *suite) close() {
	for _, connection := range s.connections {
		connection.Close()
	}
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func showing(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func unary(token string) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, request, reply any, connection *grpc.ClientConn,
		call grpc.UnaryInvoker, options ...grpc.CallOption) error {
		ctx, cancel := context.WithTimeout(showing(ctx, token), unaryDeadline)
		defer cancel()
		return call(ctx, method, request, reply, connection, options...)
	}
}

func stream(token string) grpc.StreamClientInterceptor {
	return func(ctx context.Context, description *grpc.StreamDesc, connection *grpc.ClientConn, method string,
		open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
		return open(showing(ctx, token), description, connection, method, options...)
	}
}

// newRequestID is a fresh UUID: the same one with the same request returns the job of the first call.
func newRequestID() string {
	b := make([]byte, 16)
	rand.Read(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
