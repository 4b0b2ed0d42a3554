package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	pb "example.com/ltxtrain/gen/go/ltxtrain/v1"
)

const attempts = 5

// transferError is an upload or download that did not end with the right bytes. Its text never holds a presigned URL,
// which is a secret.
type transferError string

func (e transferError) Error() string { return string(e) }

// upload sends a file of up to 5 GiB, unless the store has it already, and returns its reference where a sheet expects
// a URL. Larger ones go in parts: see ListUploadParts.
func (s *suite) upload(ctx context.Context, file string) (string, error) {
	size, digest, err := measure(file)
	if err != nil {
		return "", invalidError(err.Error())
	}
	request := &pb.CreateUploadRequest{SizeBytes: size, Sha256: digest, FileName: filepath.Base(file)}
	created, err := s.ingest.CreateUpload(ctx, request)
	if err != nil {
		return "", err
	}
	if !created.GetComplete() {
		answer, err := send(ctx, filepath.Base(file), func() (*http.Request, error) {
			body, err := os.Open(file)
			if err != nil {
				return nil, err
			}
			put, err := http.NewRequestWithContext(ctx, http.MethodPut, created.GetPutUrl(), body)
			if err == nil {
				put.ContentLength = size
				put.Header.Set("Content-Type", "application/octet-stream")
			}
			return put, err
		})
		if err != nil {
			return "", err
		}
		answer.Body.Close()
	}
	return "upload:" + created.GetUpload(), nil
}

// download leaves an artifact's bytes at a path, whole and checked by sha256, or nothing.
func (s *suite) download(ctx context.Context, artifact, path string) error {
	found, err := s.train.GetArtifact(ctx, &pb.GetArtifactRequest{Name: artifact})
	if err != nil {
		return err
	}
	answer, err := send(ctx, filepath.Base(path), func() (*http.Request, error) {
		get, err := http.NewRequestWithContext(ctx, http.MethodGet, found.GetDownloadUrl(), nil)
		if err == nil {
			// Identity, for the digest is of the bytes as they are stored.
			get.Header.Set("Accept-Encoding", "identity")
		}
		return get, err
	})
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return invalidError(err.Error())
	}
	part, err := os.CreateTemp(filepath.Dir(path), ".ltxtrain-")
	if err != nil {
		return invalidError(err.Error())
	}
	defer os.Remove(part.Name())
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(part, hash), answer.Body)
	if closed := part.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return transferError(fmt.Sprintf("%s could not be downloaded", filepath.Base(path)))
	}
	if hex.EncodeToString(hash.Sum(nil)) != found.GetArtifact().GetBlob().GetSha256() {
		return transferError(fmt.Sprintf("the bytes of %s do not have the announced sha256", filepath.Base(path)))
	}
	return os.Rename(part.Name(), path)
}

// send makes a request, and makes it again when the store does not answer or has a fault of its own.
func send(ctx context.Context, label string, request func() (*http.Request, error)) (*http.Response, error) {
	told := ""
	for try := range attempts {
		made, err := request()
		if err != nil {
			return nil, transferError(label + " cannot be sent or fetched")
		}
		answer, err := http.DefaultClient.Do(made)
		if err == nil && answer.StatusCode == http.StatusOK {
			return answer, nil
		}
		told = "the object store does not answer about " + label
		if err == nil {
			answer.Body.Close()
			told = fmt.Sprintf("the object store refused %s: HTTP %d", label, answer.StatusCode)
			if answer.StatusCode < 500 {
				break
			}
		}
		select {
		case <-time.After(200 * time.Millisecond << try):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, transferError(told)
}

// measure is a file's size and the sha256 of its bytes.
func measure(file string) (int64, string, error) {
	read, err := os.Open(file)
	if err != nil {
		return 0, "", err
	}
	defer read.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, read)
	return size, hex.EncodeToString(hash.Sum(nil)), err
}
