// Command logger is a logging program for binary:// URIs, made with containerd's
// own package for them. It keeps the two streams in files of the directory it is
// told; another argument says how it is to misbehave.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/runtime/v2/logging"
)

func main() {
	args := map[string]string{}
	for i := 1; i+1 < len(os.Args); i += 2 {
		args[os.Args[i]] = os.Args[i+1]
	}
	logging.Run(func(ctx context.Context, config *logging.Config, ready func() error) error {
		dir := args["dir"]
		write := func(name, text string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644) }
		if err := write("pid", fmt.Sprint(os.Getpid())); err != nil {
			return err
		}
		if err := write("who", config.Namespace+"/"+config.ID); err != nil {
			return err
		}
		switch args["mode"] {
		case "dies":
			os.Exit(3)
		case "deaf": // and heeds no SIGTERM, which package logging has caught
			if err := ready(); err != nil {
				return err
			}
			select {}
		}
		if err := ready(); err != nil {
			return err
		}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i, r := range []io.Reader{config.Stdout, config.Stderr} {
			wg.Go(func() { errs[i] = keep(ctx, r, filepath.Join(dir, []string{"stdout", "stderr"}[i])) })
		}
		wg.Wait()
		return errors.Join(errs...)
	})
}

// keep writes what it has got only at the end, and takes its time for it: a
// Delete that does not wait loses everything.
func keep(ctx context.Context, r io.Reader, path string) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done(): // SIGTERM
		return ctx.Err()
	case <-time.After(300 * time.Millisecond):
	}
	return os.WriteFile(path, data, 0o644)
}
