package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
)

func newTestService() (s *service, shutdowns *int) {
	n := new(int)
	return &service{host: &host{}, shutdown: func() { *n++ }, tasks: map[string]*task{}}, n
}

func TestACallForAContainerThatIsNotThereIsNotFound(t *testing.T) {
	s, _ := newTestService()
	s.tasks["creating"] = nil
	ctx := context.Background()
	for _, id := range []string{"none", "creating", ""} {
		for name, call := range map[string]func() error{
			"Start":      func() error { _, err := s.Start(ctx, &taskapi.StartRequest{ID: id}); return err },
			"Wait":       func() error { _, err := s.Wait(ctx, &taskapi.WaitRequest{ID: id}); return err },
			"Kill":       func() error { _, err := s.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: 9}); return err },
			"Delete":     func() error { _, err := s.Delete(ctx, &taskapi.DeleteRequest{ID: id}); return err },
			"State":      func() error { _, err := s.State(ctx, &taskapi.StateRequest{ID: id}); return err },
			"Pids":       func() error { _, err := s.Pids(ctx, &taskapi.PidsRequest{ID: id}); return err },
			"CloseIO":    func() error { _, err := s.CloseIO(ctx, &taskapi.CloseIORequest{ID: id}); return err },
			"Exec":       func() error { _, err := s.Exec(ctx, &taskapi.ExecProcessRequest{ID: id}); return err },
			"ResizePty":  func() error { _, err := s.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: id}); return err },
			"Pause":      func() error { _, err := s.Pause(ctx, &taskapi.PauseRequest{ID: id}); return err },
			"Resume":     func() error { _, err := s.Resume(ctx, &taskapi.ResumeRequest{ID: id}); return err },
			"Checkpoint": func() error { _, err := s.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{ID: id}); return err },
			"Update":     func() error { _, err := s.Update(ctx, &taskapi.UpdateTaskRequest{ID: id}); return err },
			"Stats":      func() error { _, err := s.Stats(ctx, &taskapi.StatsRequest{ID: id}); return err },
		} {
			if err := call(); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("%s of %q: got %v, want %v", name, id, err, errdefs.ErrNotFound)
			}
		}
	}
}

func TestAnIDIsTakenFromTheBeginningOfItsCreate(t *testing.T) {
	s, _ := newTestService()
	s.tasks["creating"] = nil
	if _, err := s.Create(context.Background(), &taskapi.CreateTaskRequest{ID: "creating"}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("got %v, want %v", err, errdefs.ErrAlreadyExists)
	}
	for range 2 { // a failed one takes nothing
		_, err := s.Create(context.Background(), &taskapi.CreateTaskRequest{ID: "c1", Bundle: t.TempDir()})
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("got %v, want %v", err, errdefs.ErrInvalidArgument)
		}
	}
}

func TestACreateThatPanicsTakesNothing(t *testing.T) {
	s, shutdowns := newTestService() // has no back end for Linux containers
	dir := t.TempDir()
	for name, data := range map[string]string{
		"config.json": `{"process":{"args":["/program"],"cwd":"/"},"root":{"path":"rootfs"},"linux":{}}`, "rootfs/program": "\x7fELF",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Fatal("no panic")
			}
		}()
		_, _ = s.Create(context.Background(), &taskapi.CreateTaskRequest{ID: "c1", Bundle: dir})
	}()
	if _, err := s.Shutdown(context.Background(), nil); err != nil || *shutdowns != 1 {
		t.Errorf("then Shutdown: got %v, %d shutdowns, want 1", err, *shutdowns)
	}
}

func TestAShimIsShutDownWithItsLastContainer(t *testing.T) {
	s, shutdowns := newTestService()
	s.tasks["c1"] = &task{}
	if _, err := s.Shutdown(context.Background(), nil); err != nil || *shutdowns != 0 {
		t.Errorf("with a container: got %v, %d shutdowns", err, *shutdowns)
	}
	delete(s.tasks, "c1")
	for want := 1; want <= 2; want++ {
		if _, err := s.Shutdown(context.Background(), nil); err != nil || *shutdowns != want {
			t.Errorf("without one: got %v, %d shutdowns, want %d", err, *shutdowns, want)
		}
	}
}

func TestAShimThatNobodyKnowsOfEnds(t *testing.T) {
	for _, tt := range []struct {
		name     string
		gone     bool // the bundle
		creating bool
		want     int
	}{
		{"its bundle is gone", true, false, 1},
		{"its bundle is there", false, false, 0},
		{"a Create is in flight", true, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bundle := filepath.Join(t.TempDir(), "bundle")
			if err := os.Mkdir(bundle, 0o700); err != nil {
				t.Fatal(err)
			}
			t.Chdir(bundle)
			if tt.gone {
				if err := os.Remove(bundle); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				s, shutdowns := newTestService()
				if tt.creating {
					s.tasks["c1"] = nil
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*orphanTime)
				defer cancel()
				s.watch(ctx)
				if *shutdowns != tt.want {
					t.Errorf("got %d shutdowns, want %d", *shutdowns, tt.want)
				}
			})
		})
	}
}

func TestAShimThatHasHadAContainerIsNotWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, shutdowns := newTestService()
		s.used = true
		s.watch(t.Context()) // returns
		if *shutdowns != 0 {
			t.Errorf("got %d shutdowns, want none", *shutdowns)
		}
	})
}
