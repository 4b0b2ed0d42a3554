// Command ltxtrain-example submits a job to an ltxtrain suite, follows it across broken connections and downloads what
// it made: with nothing but code generated from the contract.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "example.com/ltxtrain/gen/go/ltxtrain/v1"
)

const usage = `usage:
  ltxtrain-example submit SHEET.json [--data CLIPS.zip] [--validation CLIP]... [--watch] [--out DIR]
  ltxtrain-example watch JOB [--after SEQUENCE] [--out DIR]

  --data CLIPS.zip     training data to upload in place of the sheet's URL
  --validation CLIP    opening clip to upload, once for each validation entry
  --watch              follow the job until it ends
  --after SEQUENCE     show events after this one
  --out DIR            then download the results here

LTXTRAIN_TRAIN, LTXTRAIN_INGEST, LTXTRAIN_TOKEN and LTXTRAIN_TLS_ROOT say where the services are; see README.md.
Exit codes: 0 succeeded, 1 the job failed, 2 wrong usage or sheet, 3 cancelled, 4 unreachable, 5 refused.
`

// How the command ends, as the Python command line does.
const (
	succeeded = iota
	failed
	invalid
	cancelled
	unreachable
	refused
)

// invalidError is wrong usage, a wrong setting or a wrong sheet.
type invalidError string

func (e invalidError) Error() string { return string(e) }

// command is what was asked for on the command line.
type command struct {
	name, subject string
	files         files
	watch         bool
	after         int64
	out           string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		code = tell(err)
	}
	os.Exit(code)
}

func run(ctx context.Context, arguments []string) (int, error) {
	asked, err := parse(arguments)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(usage)
		return succeeded, nil
	}
	if err != nil {
		return 0, invalidError(err.Error() + "\n" + usage)
	}
	suite, err := connect()
	if err != nil {
		return 0, err
	}
	defer suite.close()
	if asked.name == "watch" {
		return suite.follow(ctx, asked.subject, asked.after, asked.out)
	}
	text, err := os.ReadFile(asked.subject)
	if err != nil {
		return 0, invalidError(err.Error())
	}
	sheet, err := parseSheet(text)
	if err != nil {
		return 0, err
	}
	job, err := suite.submit(ctx, sheet, asked.files)
	if err != nil {
		return 0, err
	}
	fmt.Println(job.GetName())
	if asked.watch || asked.out != "" {
		return suite.follow(ctx, job.GetName(), 0, asked.out)
	}
	return succeeded, nil
}

func parse(arguments []string) (command, error) {
	var asked command
	flags := flag.NewFlagSet("ltxtrain-example", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&asked.files.data, "data", "", "")
	flags.Func("validation", "", func(path string) error {
		asked.files.validation = append(asked.files.validation, path)
		return nil
	})
	flags.BoolVar(&asked.watch, "watch", false, "")
	flags.Int64Var(&asked.after, "after", 0, "")
	flags.StringVar(&asked.out, "out", "", "")
	var words []string
	// Flags may stand before, between and after the words.
	for rest := arguments; len(rest) > 0; {
		if err := flags.Parse(rest); err != nil {
			return asked, err
		}
		if rest = flags.Args(); len(rest) > 0 {
			words, rest = append(words, rest[0]), rest[1:]
		}
	}
	if len(words) != 2 {
		return asked, errors.New("a command, and one sheet or one job")
	}
	asked.name, asked.subject = words[0], words[1]
	if asked.name != "submit" && asked.name != "watch" {
		return asked, fmt.Errorf("%s is no command", asked.name)
	}
	return asked, nil
}

// follow shows events on stderr until the job ends, then downloads its results into out.
func (s *suite) follow(ctx context.Context, name string, after int64, out string) (int, error) {
	if err := s.watchJob(ctx, name, after, func(sequence int64, event *pb.Event) {
		fmt.Fprintln(os.Stderr, sequence, line(event))
	}); err != nil {
		return 0, err
	}
	answer, err := s.train.GetJob(ctx, &pb.GetJobRequest{Name: name})
	if err != nil {
		return 0, err
	}
	job := answer.GetJob()
	if out != "" {
		for _, artifact := range outputs(job) {
			path := filepath.Join(out, fileName(artifact))
			if err := s.download(ctx, artifact, path); err != nil {
				return 0, err
			}
			fmt.Println(path)
		}
	}
	if ended := job.GetLifecycle().GetError(); ended != nil {
		fmt.Fprintln(os.Stderr, describe(status.FromProto(ended)))
	}
	switch job.GetLifecycle().GetState() {
	case pb.State_STATE_SUCCEEDED:
		return succeeded, nil
	case pb.State_STATE_CANCELLED:
		return cancelled, nil
	}
	return failed, nil
}

// tell says what went wrong; it returns how the command ends.
func tell(err error) int {
	var wrong invalidError
	var lost transferError
	switch {
	case errors.As(err, &wrong):
		fmt.Fprintln(os.Stderr, wrong)
		return invalid
	case errors.As(err, &lost):
		fmt.Fprintln(os.Stderr, lost)
		return unreachable
	}
	found := status.Convert(err)
	fmt.Fprintln(os.Stderr, describe(found))
	switch found.Code() {
	case codes.InvalidArgument:
		return invalid
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return unreachable
	}
	return refused
}
