package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "example.com/ltxtrain/gen/go/ltxtrain/v1"
)

// sheet is what is asked, and how it is to be run.
type sheet struct {
	spec    *pb.ExtendPrefixSpec
	options *pb.JobOptions
}

// parseSheet reads the parameter sheet's JSON, word for word; what the sheet does not have is in an object "options".
// Its error tells every key that cannot be read. Ranges are the server's, or protovalidate's: see docs/errors.md.
func parseSheet(text []byte) (sheet, error) {
	read := sheet{&pb.ExtendPrefixSpec{}, &pb.JobOptions{}}
	var document, options map[string]json.RawMessage
	if err := json.Unmarshal(text, &document); err != nil {
		return read, invalidError("The sheet is not a JSON object: " + err.Error())
	}
	if given, ok := document["options"]; ok {
		if err := json.Unmarshal(given, &options); err != nil {
			return read, invalidError("The sheet's options are not a JSON object: " + err.Error())
		}
		delete(document, "options")
	}
	problems := append(fill(read.spec, document, ""), fill(read.options, options, "options.")...)
	slices.Sort(problems)
	if len(problems) > 0 {
		return read, invalidError("The sheet is invalid:\n  " + strings.Join(problems, "\n  "))
	}
	return read, nil
}

// fill puts the keys that can be read into a message and returns a line about each of the others.
func fill(message proto.Message, object map[string]json.RawMessage, place string) []string {
	var problems []string
	fields := message.ProtoReflect().Descriptor().Fields()
	for key, value := range object {
		field := fields.ByName(protoreflect.Name(key))
		if field == nil {
			problems = append(problems, place+key+": is not known")
			continue
		}
		if enum := field.Enum(); enum != nil {
			known := words(enum)
			var word string
			if json.Unmarshal(value, &word) != nil || known[word] == "" {
				problems = append(problems, fmt.Sprintf("%s%s: must be one of %s", place, key, strings.Join(sorted(known), ", ")))
				continue
			}
			value, _ = json.Marshal(known[word])
		}
		one, _ := json.Marshal(map[string]json.RawMessage{key: value})
		part := message.ProtoReflect().New().Interface()
		if err := protojson.Unmarshal(one, part); err != nil {
			// Its place is one in this key's own line of JSON.
			_, text, _ := strings.Cut(err.Error(), "): ")
			problems = append(problems, fmt.Sprintf("%s%s: %s", place, key, text))
			continue
		}
		proto.Merge(message, part)
	}
	return problems
}

// words has the name of each value by the word that people write: "medium" for RESOLUTION_MEDIUM, "16:9" for
// ASPECT_RATIO_16_9. A value's own name is taken too.
func words(enum protoreflect.EnumDescriptor) map[string]string {
	known := map[string]string{}
	for index := range enum.Values().Len() {
		if name := string(enum.Values().Get(index).Name()); index > 0 {
			known[word(enum, protoreflect.EnumNumber(enum.Values().Get(index).Number()))] = name
			known[name] = name
		}
	}
	return known
}

// word is what people write for a value; its number for one that this client is too old to know.
func word(enum protoreflect.EnumDescriptor, number protoreflect.EnumNumber) string {
	value := enum.Values().ByNumber(number)
	if value == nil {
		return fmt.Sprint(number)
	}
	prefix := strings.TrimSuffix(string(enum.Values().Get(0).Name()), "UNSPECIFIED")
	text := strings.ToLower(strings.TrimPrefix(string(value.Name()), prefix))
	if enum.Name() == "AspectRatio" {
		// The sheet writes shapes as 16:9, which no identifier can hold.
		return strings.ReplaceAll(text, "_", ":")
	}
	return text
}

func sorted(known map[string]string) []string {
	var found []string
	for text, name := range known {
		if text != name {
			found = append(found, text)
		}
	}
	slices.Sort(found)
	return found
}
