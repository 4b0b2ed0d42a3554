package main

import (
	"context"
	"fmt"
	"path"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "example.com/ltxtrain/gen/go/ltxtrain/v1"
)

const sheetPath = "spec.extend_prefix."

// Stands for a file that is not uploaded yet while the rest of the spec is checked.
var pendingUpload = "upload:uploads/" + strings.Repeat("0", 32)

// files are local ones in place of the sheet's URLs.
type files struct {
	data       string   // a zip
	validation []string // a clip for each validation entry, from the first on
}

// submit checks the sheet, uploads the files, starts the job and returns at once. The job runs whether or not one
// watches.
func (s *suite) submit(ctx context.Context, asked sheet, local files) (*pb.Job, error) {
	spec := proto.Clone(asked.spec).(*pb.ExtendPrefixSpec)
	for len(spec.Validation) < len(local.validation) {
		spec.Validation = append(spec.Validation, &pb.ValidationInput{})
	}
	if local.data != "" && spec.GetDataset() != "" {
		return nil, invalidError("dataset: cannot be given together with a file")
	}
	// Before gigabytes are sent in vain.
	if err := place(spec, local, func(string) (string, error) { return pendingUpload, nil }); err != nil {
		return nil, err
	}
	request := &pb.CreateJobRequest{
		RequestId:    newRequestID(),
		Spec:         &pb.TaskSpec{Task: &pb.TaskSpec_ExtendPrefix{ExtendPrefix: spec}},
		Options:      asked.options,
		ValidateOnly: true,
	}
	if _, err := s.train.CreateJob(ctx, request); err != nil {
		return nil, err
	}
	if err := place(spec, local, func(file string) (string, error) { return s.upload(ctx, file) }); err != nil {
		return nil, err
	}
	request.ValidateOnly = false
	answer, err := s.train.CreateJob(ctx, request)
	return answer.GetJob(), err
}

// place puts a reference to each local file where the spec expects a URL.
func place(spec *pb.ExtendPrefixSpec, local files, reference func(string) (string, error)) error {
	if local.data != "" {
		name, err := reference(local.data)
		if err != nil {
			return err
		}
		spec.TrainingData = &pb.ExtendPrefixSpec_TrainingDataUrl{TrainingDataUrl: name}
	}
	for index, clip := range local.validation {
		name, err := reference(clip)
		if err != nil {
			return err
		}
		spec.Validation[index].VideoUrl = name
	}
	return nil
}

// outputs are the names of a job's results; none before it has any.
func outputs(job *pb.Job) []string {
	output := job.GetOutput()
	var found []string
	for _, name := range []string{output.GetLoraFile(), output.GetConfigFile(), output.GetVideo(),
		output.GetDebugDataset(), output.GetLoraVideoOnlyFile()} {
		if name != "" {
			found = append(found, name)
		}
	}
	return found
}

// fileName is the last part of an artifact's name: the name is the server's, the folder that it is written to is ours.
func fileName(artifact string) string {
	if name := path.Base(artifact); name != "." && name != ".." && name != "/" {
		return name
	}
	return "artifact"
}

// describe tells an error as lines: what, why, and each wrong field or clip. A job's error is such a status, too.
func describe(found *status.Status) string {
	lines := []string{found.Message()}
	for _, detail := range found.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			lines[0] = detail.GetReason() + ": " + lines[0]
		case *errdetails.BadRequest:
			for _, wrong := range detail.GetFieldViolations() {
				field := strings.TrimPrefix(wrong.GetField(), sheetPath)
				lines = append(lines, fmt.Sprintf("  %s: %s: %s", field, wrong.GetReason(), wrong.GetDescription()))
			}
		case *errdetails.PreconditionFailure:
			for _, item := range detail.GetViolations() {
				lines = append(lines, fmt.Sprintf("  %s: %s", item.GetSubject(), item.GetDescription()))
			}
		}
	}
	return strings.Join(lines, "\n")
}

// line is an event as one line.
func line(event *pb.Event) string {
	stage := word(event.GetStage().Descriptor(), event.GetStage().Number())
	switch detail := event.GetDetail().(type) {
	case *pb.Event_Lifecycle:
		return word(detail.Lifecycle.GetState().Descriptor(), detail.Lifecycle.GetState().Number())
	case *pb.Event_Progress:
		return fmt.Sprintf("%s %d/%d", stage, detail.Progress.GetCompleted(), detail.Progress.GetTotal())
	case *pb.Event_ReportLine:
		reasons := make([]string, 0, len(detail.ReportLine.GetReasons()))
		for _, reason := range detail.ReportLine.GetReasons() {
			reasons = append(reasons, strings.TrimPrefix(reason.String(), "REPORT_REASON_"))
		}
		outcome := word(detail.ReportLine.GetOutcome().Descriptor(), detail.ReportLine.GetOutcome().Number())
		return strings.TrimSpace(outcome + " " + detail.ReportLine.GetPath() + " " + strings.Join(reasons, ", "))
	case *pb.Event_TrainMetrics:
		return fmt.Sprintf("step %d loss %.4f", detail.TrainMetrics.GetStep(), detail.TrainMetrics.GetLoss())
	case *pb.Event_Artifact:
		return "stored " + fileName(detail.Artifact.GetName())
	case *pb.Event_Warning:
		return "warning: " + detail.Warning.GetMessage()
	}
	// A detail that is newer than this client too.
	return stage
}
