package sandbox

import (
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestSchedulingThatCannotBeHadIsAnError(t *testing.T) {
	for name, s := range map[string]Scheduling{
		"no policy":                   {Scheduler: &specs.Scheduler{}},
		"an unknown policy":           {Scheduler: &specs.Scheduler{Policy: "SCHED_LUCK"}},
		"a deadline, with threads":    {Scheduler: &specs.Scheduler{Policy: specs.SchedDeadline, Runtime: 1e6, Deadline: 2e6, Period: 2e6}},
		"a period without a deadline": {Scheduler: &specs.Scheduler{Policy: specs.SchedOther, Period: 1}},
		"too nice":                    {Scheduler: &specs.Scheduler{Policy: specs.SchedOther, Nice: 20}},
		"not nice enough":             {Scheduler: &specs.Scheduler{Policy: specs.SchedBatch, Nice: -21}},
		"a priority of others":        {Scheduler: &specs.Scheduler{Policy: specs.SchedBatch, Priority: 1}},
		"a reset for every thread":    {Scheduler: &specs.Scheduler{Policy: specs.SchedFIFO, Priority: 1, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}},
		"an unknown class":            {IOPriority: &specs.LinuxIOPriority{Class: "IOPRIO_CLASS_LUCK"}},
		"an I/O priority too low":     {IOPriority: &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 8}},
		"an I/O priority too high":    {IOPriority: &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: -1}},
		"no processor":                {CPUs: "all"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := (&Config{Scheduling: s}).Check(); err == nil {
				t.Error("got no error")
			}
		})
	}
	if err := (&Config{}).Check(); err != nil {
		t.Errorf("nothing asked for: %v", err)
	}
}

func TestASetIsReadAsTheKernelWritesIt(t *testing.T) {
	for _, tt := range []struct {
		list string
		want []int // nil: an error
	}{
		{"0", []int{0}},
		{"0-2,7", []int{0, 1, 2, 7}},
		{"5, 1023", []int{5, 1023}},
		{"3-3", []int{3}},
		{"", nil}, {"0,", nil}, {"1-", nil}, {"-1", nil}, {"2-1", nil}, {"1024", nil}, {"0-99999", nil}, {"0x1", nil}, {"1-2-3", nil},
	} {
		set, err := parseSet(tt.list)
		if tt.want == nil {
			if err == nil {
				t.Errorf("%q: got no error", tt.list)
			}
			continue
		}
		var got []int
		for i := range 1024 {
			if err == nil && set.IsSet(i) {
				got = append(got, i)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %v, %v, want %v", tt.list, got, err, tt.want)
		}
	}
}

func TestAMemoryPolicyIsTheThreadsThatTakesItOn(t *testing.T) {
	if err := (&Config{MemoryPolicy: &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}}).Check(); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*specs.LinuxMemoryPolicy{
		"no mode":          {},
		"an unknown mode":  {Mode: "MPOL_LUCK"},
		"an unknown flag":  {Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{"MPOL_F_LUCK"}},
		"no nodes":         {Mode: specs.MpolBind},
		"nodes of a word":  {Mode: specs.MpolBind, Nodes: "all"},
		"a node not there": {Mode: specs.MpolBind, Nodes: "1000"},
	} {
		if err := (&Config{MemoryPolicy: p}).Check(); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestEveryThreadOfAProcessIsScheduled(t *testing.T) {
	threads := []*thread{newThread(), newThread(), newThread()}
	var ids []int
	for _, th := range threads {
		defer th.close()
		if err := th.do(func() error { ids = append(ids, unix.Gettid()); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := (Scheduling{Scheduler: &specs.Scheduler{Policy: specs.SchedOther, Nice: 1}}).set(unix.Getpid()); err != nil {
		t.Fatal(err)
	}
	for _, tid := range ids {
		if attr, err := unix.SchedGetAttr(tid, 0); err != nil || attr.Nice != 1 {
			t.Errorf("thread %d: got %+v, %v, want nice 1", tid, attr, err)
		}
	}
}
