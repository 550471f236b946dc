package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Scheduling is when and where a process runs. The zero value leaves it as it is.
type Scheduling struct {
	Scheduler  *specs.Scheduler
	IOPriority *specs.LinuxIOPriority
	CPUs       string // such as 0-3,7
}

var schedulerPolicies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: unix.SCHED_NORMAL, specs.SchedFIFO: unix.SCHED_FIFO, specs.SchedRR: unix.SCHED_RR,
	specs.SchedBatch: unix.SCHED_BATCH, specs.SchedIdle: unix.SCHED_IDLE,
}

var schedulerFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagKeepPolicy: unix.SCHED_FLAG_KEEP_POLICY, specs.SchedFlagKeepParams: unix.SCHED_FLAG_KEEP_PARAMS,
}

// Linux's classes of ioprio_set(2), and how its argument is made of one.
var ioClasses = map[specs.IOPriorityClass]int{
	specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3,
}

const (
	ioClassShift    = 13
	ioWhoProcess    = 1
	ioPriorityRange = 8
)

// calls are the system calls to be made for each thread. An error is about what can
// be asked of no process, or not of an instance process.
func (s Scheduling) calls() (calls []func(tid int) error, err error) {
	if s.Scheduler != nil {
		attr, err := schedulerAttributes(s.Scheduler)
		if err != nil {
			return nil, fmt.Errorf("scheduler: %w", err)
		}
		calls = append(calls, func(tid int) error {
			if err := unix.SchedSetAttr(tid, attr, 0); err != nil {
				return fmt.Errorf("scheduler %s: %w", s.Scheduler.Policy, err)
			}
			return nil
		})
	}
	if p := s.IOPriority; p != nil {
		class, ok := ioClasses[p.Class]
		if !ok {
			return nil, fmt.Errorf("ioPriority: class %q: unknown", p.Class)
		}
		if p.Priority < 0 || p.Priority >= ioPriorityRange {
			return nil, fmt.Errorf("ioPriority: priority %d: want 0 to %d", p.Priority, ioPriorityRange-1)
		}
		calls = append(calls, func(tid int) error {
			_, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioWhoProcess, uintptr(tid), uintptr(class<<ioClassShift|p.Priority))
			if errno != 0 {
				return fmt.Errorf("ioPriority %s: %w", p.Class, errno)
			}
			return nil
		})
	}
	if s.CPUs != "" {
		cpus, err := parseSet(s.CPUs)
		if err != nil {
			return nil, fmt.Errorf("execCPUAffinity %s: %w", s.CPUs, err)
		}
		calls = append(calls, func(tid int) error {
			if err := unix.SchedSetaffinity(tid, cpus); err != nil {
				return fmt.Errorf("execCPUAffinity %s: %w", s.CPUs, err)
			}
			return nil
		})
	}
	return calls, nil
}

func schedulerAttributes(s *specs.Scheduler) (*unix.SchedAttr, error) {
	if s.Policy == specs.SchedDeadline {
		return nil, errors.New("SCHED_DEADLINE: not for a process of several threads, which every instance process is")
	}
	policy, ok := schedulerPolicies[s.Policy]
	if !ok {
		return nil, fmt.Errorf("policy %q: unknown", s.Policy)
	}
	realtime := policy == unix.SCHED_FIFO || policy == unix.SCHED_RR
	switch {
	case s.Runtime != 0 || s.Deadline != 0 || s.Period != 0:
		return nil, fmt.Errorf("runtime, deadline and period: not for %s", s.Policy)
	case s.Nice < -20 || s.Nice > 19:
		return nil, fmt.Errorf("nice %d: want -20 to 19", s.Nice)
	case s.Priority != 0 && !realtime:
		return nil, fmt.Errorf("priority: not for %s", s.Policy)
	}
	attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Nice: s.Nice, Priority: uint32(s.Priority)}
	for _, f := range s.Flags {
		flag, ok := schedulerFlags[f]
		if !ok {
			// A reset on fork would be one for every later thread of the process.
			return nil, fmt.Errorf("flag %s: not supported for wasm containers", f)
		}
		attr.Flags |= flag
	}
	return attr, nil
}

// set schedules the threads of the process pid, and so those that they will
// start.
func (s Scheduling) set(pid int) error {
	calls, err := s.calls()
	if err != nil || len(calls) == 0 {
		return err
	}
	done := map[int]bool{}
	for before := -1; before < len(done); { // until there is none that one of them started meanwhile
		before = len(done)
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || done[tid] {
				continue
			}
			for _, call := range calls {
				if err := call(tid); err != nil && !errors.Is(err, unix.ESRCH) { // that one has ended
					return err
				}
			}
			done[tid] = true
		}
	}
	return nil
}

var memoryModes = map[specs.MemoryPolicyModeType]uintptr{
	specs.MpolDefault: unix.MPOL_DEFAULT, specs.MpolPreferred: unix.MPOL_PREFERRED, specs.MpolBind: unix.MPOL_BIND,
	specs.MpolInterleave: unix.MPOL_INTERLEAVE, specs.MpolLocal: unix.MPOL_LOCAL,
	specs.MpolPreferredMany: unix.MPOL_PREFERRED_MANY, specs.MpolWeightedInterleave: unix.MPOL_WEIGHTED_INTERLEAVE,
}

var memoryFlags = map[specs.MemoryPolicyFlagType]uintptr{
	specs.MpolFStaticNodes: unix.MPOL_F_STATIC_NODES, specs.MpolFRelativeNodes: unix.MPOL_F_RELATIVE_NODES,
	specs.MpolFNumaBalancing: unix.MPOL_F_NUMA_BALANCING,
}

// setMemoryPolicy is the calling thread's, and inherited by what it starts.
func setMemoryPolicy(p *specs.LinuxMemoryPolicy) error {
	mode, ok := memoryModes[p.Mode]
	if !ok {
		return fmt.Errorf("memoryPolicy: mode %q: unknown", p.Mode)
	}
	for _, f := range p.Flags {
		flag, ok := memoryFlags[f]
		if !ok {
			return fmt.Errorf("memoryPolicy: flag %q: unknown", f)
		}
		mode |= flag
	}
	nodes := &unix.CPUSet{}
	if p.Nodes != "" {
		var err error
		if nodes, err = parseSet(p.Nodes); err != nil {
			return fmt.Errorf("memoryPolicy: nodes %s: %w", p.Nodes, err)
		}
	}
	if err := unix.SetMemPolicy(int(mode), nodes); err != nil {
		return fmt.Errorf("memoryPolicy %s of nodes %q: %w", p.Mode, p.Nodes, err)
	}
	return nil
}

// parseSet reads a list such as 0-3,7: cpuset(7), "List format".
func parseSet(list string) (*unix.CPUSet, error) {
	set := &unix.CPUSet{}
	most := int(unsafe.Sizeof(*set))*8 - 1
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.ParseUint(from, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || first > last || int(last) > most {
			return nil, fmt.Errorf("%q: want numbers up to %d, or ranges of them", part, most)
		}
		for i := first; i <= last; i++ {
			set.Set(int(i))
		}
	}
	return set, nil
}
