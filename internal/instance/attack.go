//go:build attack

package instance

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This is the build in which the engine is broken: native code runs in the
// instance process at the moment the guest would, with whatever a guest could do
// that has taken the process over.
//
//	ARGV0 ATTACK[,ATTACK...] [KEY=VALUE...]
//
// Each attack prints a line of JSON, a [report]. As a program of the host the same
// attacks run without walls, to see that they work:
//
//	containerd-shim-wazero-v1 attack ATTACK[,ATTACK...] [KEY=VALUE...]

// A target is what an attack is aimed at, by key:
//
//	pid       of a process outside
//	file      of the host
//	socket    of the host, a path
//	abstract  socket of the host, with @
//	bind      a file of the host that is mounted in the container
//	image     where the image's files are, if that is not the root
//	careful   if set, what could not be undone is not tried
type target map[string]string

func (t target) pid() int {
	pid, _ := strconv.Atoi(t["pid"]) // 0: nobody
	return pid
}

// attacks are by the name that the container's arguments give.
var attacks = map[string]func(target) []try{
	"exec": attackExec, "fork": attackFork, "trace": attackTrace, "mount": attackMount, "namespaces": attackNamespaces,
	"kernel": attackKernel, "keys": attackKeys, "machine": attackMachine, "files": attackFiles, "handles": attackHandles,
	"credentials": attackCredentials, "signals": attackSignals, "others": attackOthers, "sockets": attackSockets,
	"ipc": attackIPC, "terminal": attackTerminal, "descriptors": attackDescriptors,
}

// A try is one call of an attack.
type try struct {
	Call string `json:"call"`
	// Reached: the call did what an attacker wants, or was refused for something
	// that has to do with its arguments only.
	Reached bool   `json:"reached"`
	Error   string `json:"error,omitempty"`
}

type report struct {
	Attack string `json:"attack"`
	Tries  []try  `json:"tries"`
}

func init() {
	if len(os.Args) > 2 && os.Args[1] == "attack" {
		instead(os.Args[1:])
	}
}

// instead attacks, if the first argument says so, and does not return then.
func instead(args []string) {
	syscallAttacks(args)
	if len(args) < 2 {
		return
	}
	t := target{}
	for _, kv := range args[2:] {
		k, v, _ := strings.Cut(kv, "=")
		t[k] = v
	}
	for _, name := range strings.Split(args[1], ",") {
		attack, ok := attacks[name]
		if !ok {
			return
		}
		if err := json.NewEncoder(os.Stdout).Encode(report{name, attack(t)}); err != nil {
			os.Exit(1)
		}
	}
	os.Exit(0)
}

// unfiltered is whether there are to be no seccomp filters, so that the other walls
// show.
func unfiltered(args []string) bool { return slices.Contains(args, "unfiltered=1") }

// tried is what came of a call. One that failed for a reason in fine has reached.
func tried(call string, err error, fine ...error) try {
	t := try{Call: call, Reached: err == nil}
	if err != nil {
		t.Error = err.Error()
	}
	for _, f := range fine {
		t.Reached = t.Reached || errors.Is(err, f)
	}
	return t
}

// raw calls the kernel.
func raw(number uintptr, args ...uintptr) error {
	_, err := rawResult(number, args...)
	return err
}

func rawResult(number uintptr, args ...uintptr) (uintptr, error) {
	var a [6]uintptr
	copy(a[:], args)
	r, _, e := syscall.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		return r, e
	}
	return r, nil
}

func text(s string) uintptr {
	p, err := unix.BytePtrFromString(s)
	if err != nil {
		panic(err)
	}
	pinned = append(pinned, p)
	return uintptr(unsafe.Pointer(p))
}

func bytesOf(b []byte) uintptr {
	pinned = append(pinned, &b[0])
	return uintptr(unsafe.Pointer(&b[0]))
}

// pinned is what the kernel has an address of.
var pinned []*byte

// attackExec tries files that are no programs: whoever may execute has ENOEXEC.
// The program of the image, last, would not come back.
func attackExec(t target) (tries []try) {
	argv := []uintptr{text("busybox"), text("echo"), text("EXECUTED"), 0}
	envp := []uintptr{0}
	args, env := uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0]))
	for _, path := range []string{t["image"] + "/notaprogram", "/proc/self/root" + t["image"] + "/notaprogram"} {
		tries = append(tries, tried("execve "+path, raw(unix.SYS_EXECVE, text(path), args, env), unix.ENOEXEC))
	}
	fd, err := unix.Open(t["image"]+"/notaprogram", unix.O_RDONLY, 0)
	if err == nil {
		err = raw(unix.SYS_EXECVEAT, uintptr(fd), text(""), args, env, unix.AT_EMPTY_PATH)
	}
	tries = append(tries, tried("execveat of a descriptor", err, unix.ENOEXEC))
	fd, err = unix.MemfdCreate("x", 0)
	if err == nil {
		_, err = unix.Write(fd, []byte("not a program"))
	}
	if err == nil {
		err = unix.Fchmod(fd, 0o755)
	}
	if err == nil {
		err = raw(unix.SYS_EXECVEAT, uintptr(fd), text(""), args, env, unix.AT_EMPTY_PATH)
	}
	tries = append(tries, tried("execveat of a memfd", err, unix.ENOEXEC))
	tries = append(tries, tried("execve /busybox", raw(unix.SYS_EXECVE, text(t["image"]+"/busybox"), args, env)))
	runtime.KeepAlive(argv)
	runtime.KeepAlive(envp)
	return tries
}

// fork is a call that returns twice.
func fork(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	r, _, e := syscall.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		return e
	}
	if r == 0 {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return nil
}

func attackFork(target) []try {
	arg3 := struct{ flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, tid, tidSize, cgroup uint64 }{exitSignal: uint64(unix.SIGCHLD)}
	tries := []try{
		tried("clone", fork(unix.SYS_CLONE, uintptr(unix.SIGCHLD))),
		tried("clone, suspended as by vfork", fork(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_VFORK)),
		tried("clone, beside this process", fork(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_PARENT)),
		tried("clone, new user namespace", fork(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_NEWUSER)),
		tried("clone3", fork(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&arg3)), unsafe.Sizeof(arg3))),
	}
	return append(tries, attackForkOld()...)
}

func attackTrace(t target) []try {
	pid := t.pid()
	word := make([]byte, 8)
	local := unix.Iovec{Base: &word[0], Len: 8}
	remote := unix.RemoteIovec{Base: uintptr(unsafe.Pointer(&word[0])), Len: 8} // of another process: anything, or EFAULT
	_, read := unix.ProcessVMReadv(pid, []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
	_, write := unix.ProcessVMWritev(pid, []unix.Iovec{local}, []unix.RemoteIovec{{Base: 8, Len: 8}}, 0) // never mapped
	tries := []try{
		tried("process_vm_readv", read, unix.EFAULT),
		tried("process_vm_writev", write, unix.EFAULT),
		tried("kcmp", raw(unix.SYS_KCMP, uintptr(pid), uintptr(pid), 1 /* KCMP_VM */)),
		tried("get_robust_list", raw(unix.SYS_GET_ROBUST_LIST, uintptr(pid), bytesOf(make([]byte, 8)), bytesOf(make([]byte, 8)))),
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		_, err = unix.PidfdGetfd(fd, 0, 0)
	}
	tries = append(tries, tried("pidfd_getfd", err))
	runtime.LockOSThread() // which traces then
	err = unix.PtraceSeize(pid)
	if err == nil {
		_ = unix.PtraceInterrupt(pid)
		_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
		_ = unix.PtraceDetach(pid)
	}
	tries = append(tries, tried("ptrace seize", err))
	err = raw(unix.SYS_PTRACE, unix.PTRACE_ATTACH, uintptr(pid))
	if err == nil {
		_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
		_ = unix.PtraceDetach(pid)
	}
	tries = append(tries, tried("ptrace attach", err))
	if t["careful"] == "" { // it would stop at the next signal
		tries = append(tries, tried("ptrace traceme", raw(unix.SYS_PTRACE, unix.PTRACE_TRACEME)))
	}
	return tries
}

func attackMount(t target) []try {
	tmp := t["image"] + "/tmp"
	_, clone := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE)
	_, open := unix.Fsopen("tmpfs", 0)
	_, mount := unix.Fsmount(-1, 0, 0)
	_, pick := unix.Fspick(unix.AT_FDCWD, "/", 0)
	return []try{
		tried("mount tmpfs", unix.Mount("x", tmp, "tmpfs", 0, "")),
		tried("mount proc", unix.Mount("proc", tmp, "proc", 0, "")),
		tried("mount bind", unix.Mount("/", tmp, "", unix.MS_BIND|unix.MS_REC, "")),
		tried("remount", unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "")),
		tried("mount make shared", unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")),
		tried("open_tree clone", clone),
		tried("move_mount", unix.MoveMount(-1, "", -1, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH), unix.EBADF),
		tried("fsopen", open),
		tried("fsmount", mount, unix.EBADF, unix.EINVAL),
		tried("fspick", pick, unix.EINVAL),
		tried("mount_setattr", unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID})),
		tried("pivot_root", unix.PivotRoot(tmp, tmp), unix.EINVAL, unix.EBUSY),
		tried("chroot", unix.Chroot("/")),
		tried("umount", unix.Unmount(tmp, unix.MNT_DETACH), unix.EINVAL),
	}
}

func attackNamespaces(t target) (tries []try) {
	flags := map[string]uintptr{
		"mount": unix.CLONE_NEWNS, "uts": unix.CLONE_NEWUTS, "ipc": unix.CLONE_NEWIPC, "network": unix.CLONE_NEWNET,
		"pid": unix.CLONE_NEWPID, "cgroup": unix.CLONE_NEWCGROUP, "time": unix.CLONE_NEWTIME,
	}
	fd, err := unix.PidfdOpen(t.pid(), 0)
	for name, flag := range flags {
		e := err
		if e == nil {
			e = unix.Setns(fd, int(flag))
		}
		if name == "mount" { // the kernel wants a thread that shares no root
			tries = append(tries, tried("setns "+name, e, unix.EINVAL))
		} else {
			tries = append(tries, tried("setns "+name, e))
		}
		tries = append(tries, tried("unshare "+name, unix.Unshare(int(flag)), unix.EINVAL)) // pid and time have a thread share none
	}
	// Of many threads none may: one that were allowed to has EINVAL.
	return append(tries, tried("unshare user", unix.Unshare(unix.CLONE_NEWUSER), unix.EINVAL))
}

func attackKernel(target) []try {
	attr := make([]byte, 128)
	attr[0], attr[4], attr[8], attr[12] = 2, 4, 4, 1 // BPF_MAP_TYPE_ARRAY, of one 4 bytes long
	perf := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	_, event := unix.PerfEventOpen(&perf, 0, -1, -1, 0)
	_, notify := unix.FanotifyInit(unix.FAN_CLASS_CONTENT, 0)
	return []try{
		tried("bpf", raw(unix.SYS_BPF, 0 /* BPF_MAP_CREATE */, bytesOf(attr), uintptr(len(attr)))),
		tried("perf_event_open", event),
		tried("userfaultfd", raw(unix.SYS_USERFAULTFD, 0)),
		tried("userfaultfd, user mode only", raw(unix.SYS_USERFAULTFD, 1)),
		tried("io_uring_setup", raw(unix.SYS_IO_URING_SETUP, 4, bytesOf(make([]byte, 120)))),
		tried("fanotify_init", notify),
		tried("init_module", raw(unix.SYS_INIT_MODULE, bytesOf(make([]byte, 8)), 8, text("")), unix.ENOEXEC),
		tried("finit_module", raw(unix.SYS_FINIT_MODULE, 0, text(""), 0), unix.ENOEXEC, unix.EBADF, unix.EINVAL),
		tried("delete_module", raw(unix.SYS_DELETE_MODULE, text("wz_none"), 0), unix.ENOENT),
	}
}

func attackKeys(target) []try {
	const user, session = ^uintptr(3), ^uintptr(2) // KEY_SPEC_USER_KEYRING, KEY_SPEC_SESSION_KEYRING
	return []try{
		tried("add_key", raw(unix.SYS_ADD_KEY, text("user"), text("wz"), bytesOf([]byte("x")), 1, session)),
		tried("add_key of the user", raw(unix.SYS_ADD_KEY, text("user"), text("wz"), bytesOf([]byte("x")), 1, user)),
		tried("request_key", raw(unix.SYS_REQUEST_KEY, text("user"), text("wz-none"), 0, 0), unix.ENOKEY),
		tried("keyctl", raw(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, user, 1)),
	}
}

// attackMachine would change the machine to what it is, or is refused for its
// arguments.
func attackMachine(target) []try {
	var name unix.Utsname
	_ = unix.Uname(&name) // else the name is empty
	host := unix.ByteSliceToString(name.Nodename[:])
	now := unix.NsecToTimespec(time.Now().UnixNano())
	tz := make([]byte, 8)
	timex := unix.Timex{Modes: unix.ADJ_TICK, Tick: 1}
	_, adjust := unix.Adjtimex(&timex)
	return []try{
		tried("sethostname", unix.Sethostname([]byte(host))),
		tried("setdomainname", unix.Setdomainname([]byte("(none)"))),
		tried("settimeofday", raw(unix.SYS_SETTIMEOFDAY, 0, bytesOf(tz))),
		tried("clock_settime", unix.ClockSettime(unix.CLOCK_REALTIME, &now)),
		tried("adjtimex", adjust, unix.EINVAL),
		tried("reboot", raw(unix.SYS_REBOOT, 1, 2, 3, 0), unix.EINVAL),
		tried("kexec_load", raw(unix.SYS_KEXEC_LOAD, 0, 99, 0, ^uintptr(0)), unix.EINVAL),
		tried("swapon", raw(unix.SYS_SWAPON, text("/none"), 0), unix.ENOENT),
		tried("swapoff", raw(unix.SYS_SWAPOFF, text("/none")), unix.ENOENT),
		tried("acct", raw(unix.SYS_ACCT, text("/none")), unix.ENOENT),
		tried("syslog", raw(unix.SYS_SYSLOG, 10 /* SYSLOG_ACTION_SIZE_BUFFER */)),
	}
}

func openFile(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func attackFiles(t target) (tries []try) {
	up := strings.Repeat("/..", 40)
	for _, path := range []string{
		t["file"], up + t["file"], "/proc/1/root" + t["file"], "/proc/self/root" + t["file"], "/proc/self/cwd" + up + t["file"],
		"/proc/" + t["pid"] + "/root" + t["file"], "/covered/host" + t["file"], "/attached/.." + up + t["file"],
	} {
		tries = append(tries, tried("open "+path, openFile(path, unix.O_RDONLY)))
	}
	for _, path := range []string{
		"/proc/self/mem", "/proc/self/exe", "/proc/1/environ", "/proc/" + t["pid"] + "/environ", "/proc/" + t["pid"] + "/mem", "/proc/sysrq-trigger", "/proc/kcore",
		"/sys/kernel", "/sys/fs/cgroup", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda",
	} {
		tries = append(tries, tried("open "+path, openFile(path, unix.O_RDONLY)))
	}
	for _, path := range []string{"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/tasks", "/sys/fs/cgroup/pids/cgroup.procs", "/sys/fs/cgroup/devices/devices.allow"} {
		tries = append(tries, tried("write "+path, openFile(path, unix.O_WRONLY)))
	}
	for _, d := range []struct {
		name         string
		mode         uint32
		major, minor uint32
	}{{"mem", unix.S_IFCHR, 1, 1}, {"kmsg", unix.S_IFCHR, 1, 11}, {"vda", unix.S_IFBLK, 254, 0}} {
		path := t["image"] + "/tmp/made-" + d.name
		err := unix.Mknod(path, d.mode|0o600, int(unix.Mkdev(d.major, d.minor)))
		tries = append(tries, tried("mknod "+d.name, err))
		_ = unix.Unlink(path) // if it is there
	}
	for fd := range 4096 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		f, err := unix.Openat(fd, strings.Repeat("../", 40)+t["file"], unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(f)
		}
		tries = append(tries, tried(fmt.Sprintf("openat of descriptor %d", fd), err))
	}
	return tries
}

func attackHandles(t target) []try {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, t["bind"], 0)
	tries := []try{tried("name_to_handle_at", err)}
	if err != nil {
		h = unix.NewFileHandle(1, make([]byte, 8))
	}
	at, err := unix.Open(t["bind"], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.OpenByHandleAt(at, h, unix.O_RDONLY|unix.O_CLOEXEC)
	}
	return append(tries, tried("open_by_handle_at", err, unix.ESTALE))
}

func attackCredentials(t target) []try {
	const other = 54321
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	_ = unix.Capget(&header, &sets[0]) // else it has none, which is no different here
	for _, set := range []*uint32{&sets[0].Effective, &sets[0].Permitted, &sets[0].Inheritable} {
		*set |= 1 << unix.CAP_SYS_ADMIN
	}
	one := [1]uint32{other}
	runtime.LockOSThread()
	tries := []try{
		tried("capset", unix.Capset(&header, &sets[0])),
		tried("prctl securebits", unix.Prctl(unix.PR_SET_SECUREBITS, 0, 0, 0, 0)),
		tried("prctl ambient", unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_SYS_ADMIN, 0, 0)),
		tried("prctl no parent's death", unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0)),
		tried("chown", unix.Chown(t["image"]+"/tmp/mine", other, other)),
	}
	fs, err := unix.SetfsuidRetUid(other)
	if err == nil {
		if now, _ := unix.SetfsuidRetUid(fs); now != other {
			err = unix.EPERM // it says nothing
		}
	}
	return append(tries,
		tried("setfsuid", err),
		tried("setgroups", raw(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&one[0])))),
		tried("setresgid", raw(unix.SYS_SETRESGID, other, other, other)),
		tried("setresuid", raw(unix.SYS_SETRESUID, other, other, other)))
}

func attackSignals(t target) []try {
	pid := uintptr(t.pid())
	info := make([]byte, 128)
	for i, b := range []byte{0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff} { // si_code: SI_QUEUE
		info[i] = b
	}
	fd, err := unix.PidfdOpen(int(pid), 0)
	send := err
	if err == nil {
		send = unix.PidfdSendSignal(fd, 0, nil, 0)
	}
	return []try{
		tried("kill", unix.Kill(int(pid), 0)),
		tried("kill its group", unix.Kill(-int(pid), 0)),
		tried("kill everybody", unix.Kill(-1, 0)),
		tried("tkill", raw(unix.SYS_TKILL, pid, 0)),
		tried("tgkill", raw(unix.SYS_TGKILL, pid, pid, 0)),
		tried("rt_sigqueueinfo", raw(unix.SYS_RT_SIGQUEUEINFO, pid, 0, bytesOf(info))),
		tried("pidfd_open", err),
		tried("pidfd_send_signal", send),
	}
}

func attackOthers(t target) []try {
	pid := uintptr(t.pid())
	var limit unix.Rlimit
	priority := make([]byte, 4)
	priority[0] = 1
	return []try{
		tried("prlimit of another", unix.Prlimit(int(pid), unix.RLIMIT_NOFILE, nil, &limit)),
		tried("sched_setaffinity of another", raw(unix.SYS_SCHED_SETAFFINITY, pid, 8, bytesOf([]byte{255, 255, 255, 255, 255, 255, 255, 255}))),
		tried("setpriority of another", unix.Setpriority(unix.PRIO_PROCESS, int(pid), 1)),
		tried("ioprio_set of another", raw(unix.SYS_IOPRIO_SET, 1, pid, 2<<13|4)),
		tried("migrate_pages of another", raw(unix.SYS_MIGRATE_PAGES, pid, 64, bytesOf(make([]byte, 8)), bytesOf(make([]byte, 8)))),
		tried("setpriority, higher", unix.Setpriority(unix.PRIO_PROCESS, 0, -5)),
		tried("sched_setscheduler", raw(unix.SYS_SCHED_SETSCHEDULER, 0, 1 /* SCHED_FIFO */, bytesOf(priority))),
	}
}

func attackSockets(t target) (tries []try) {
	for name, f := range map[string]int{
		"unix": unix.AF_UNIX, "inet": unix.AF_INET, "inet6": unix.AF_INET6, "netlink": unix.AF_NETLINK, "packet": unix.AF_PACKET,
		"vsock": unix.AF_VSOCK, "alg": unix.AF_ALG,
	} {
		kind := unix.SOCK_STREAM
		switch f {
		case unix.AF_NETLINK, unix.AF_PACKET:
			kind = unix.SOCK_RAW
		case unix.AF_ALG:
			kind = unix.SOCK_SEQPACKET
		}
		fd, err := unix.Socket(f, kind|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		tries = append(tries, tried("socket "+name, err, unix.EAFNOSUPPORT))
	}
	_, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	tries = append(tries, tried("socketpair", err))
	for _, key := range []string{"socket", "abstract"} {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: t[key]})
			unix.Close(fd)
		}
		tries = append(tries, tried("connect, "+key, err))
	}
	return tries
}

func attackIPC(target) []try {
	const private, create = 0, 0o1000 | 0o600
	id, err := rawResult(unix.SYS_SHMGET, private, 4096, create)
	if err == nil {
		_ = raw(unix.SYS_SHMCTL, id, 0 /* IPC_RMID */, 0)
	}
	queue, msg := rawResult(unix.SYS_MSGGET, private, create)
	if msg == nil {
		_ = raw(unix.SYS_MSGCTL, queue, 0, 0)
	}
	set, sem := rawResult(unix.SYS_SEMGET, private, 1, create)
	if sem == nil {
		_ = raw(unix.SYS_SEMCTL, set, 0, 0, 0)
	}
	return []try{
		tried("shmget", err), tried("msgget", msg), tried("semget", sem),
		tried("mq_open", raw(unix.SYS_MQ_OPEN, text("wz-none"), unix.O_RDONLY, 0, 0), unix.ENOENT),
	}
}

func attackTerminal(target) (tries []try) {
	x := []byte{'x'}
	const conSelect, setDiscipline = 2, unix.TIOCSETD
	discipline := make([]byte, 4)
	for fd := range uintptr(3) {
		where := fmt.Sprintf(" of descriptor %d", fd)
		tries = append(tries,
			tried("TIOCSCTTY"+where, raw(unix.SYS_IOCTL, fd, unix.TIOCSCTTY, 0)),
			tried("TIOCSTI"+where, raw(unix.SYS_IOCTL, fd, unix.TIOCSTI, bytesOf(x))),
			tried("TIOCLINUX"+where, raw(unix.SYS_IOCTL, fd, unix.TIOCLINUX, bytesOf([]byte{conSelect, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}))),
			tried("TIOCSETD"+where, raw(unix.SYS_IOCTL, fd, setDiscipline, bytesOf(discipline))),
			tried("TCSETS"+where, func() error {
				t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
				if err != nil {
					return err
				}
				return unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
			}()))
	}
	return append(tries, tried("open /dev/tty", openFile("/dev/tty", unix.O_RDWR)))
}

// attackDescriptors tells of every descriptor that is open what it is.
func attackDescriptors(target) (tries []try) {
	kinds := map[uint32]string{
		unix.S_IFIFO: "pipe", unix.S_IFCHR: "device", unix.S_IFDIR: "directory", unix.S_IFREG: "file", unix.S_IFSOCK: "socket", unix.S_IFBLK: "block device",
		0: "anonymous",
	}
	for fd := range 4096 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			tries = append(tries, try{Call: fmt.Sprintf("%d %s", fd, kinds[st.Mode&unix.S_IFMT]), Reached: true})
		}
	}
	return tries
}
