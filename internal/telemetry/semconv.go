package telemetry

import (
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// All names that the telemetry of a shim has are in this file, but for the resource's,
// and each has a row in a table of docs/telemetry.md. What the semantic conventions of
// OpenTelemetry have a name for is called that, and means that; package semconv says
// what. The rest is ours, most of it below "wasm.".

// Operations on a container, each the span of a call of the task service.
const (
	// TaskCreate makes a container, or fails to. Its stages are below it.
	TaskCreate = "task.create"
	// TaskStart lets a guest run.
	TaskStart = "task.start"
	// TaskWait waits for the exit of a process.
	TaskWait = "task.wait"
	// TaskKill ends a process for a signal.
	TaskKill = "task.kill"
	// TaskExec adds a process to a container.
	TaskExec = "task.exec"
	// TaskPause stops the processes of a container where they are.
	TaskPause = "task.pause"
	// TaskResume lets them go on.
	TaskResume = "task.resume"
	// TaskUpdate changes the limits of a container.
	TaskUpdate = "task.update"
	// TaskDelete removes a process that has ended, the first one with its container.
	TaskDelete = "task.delete"
)

// The start of the shim, before the first operation.
const (
	// ShimStart is from the begin of `start` until the shim has its first container
	// to make.
	ShimStart = "shim.start"
	// ShimListen is from there until `start` is answered: the shim has a socket then.
	ShimListen = "shim.listen"
	// ShimServe is from there until it serves that.
	ShimServe = "shim.serve"
)

// Stages of an operation.
const (
	// BundleLoad reads config.json.
	BundleLoad = "bundle.load"
	// RootfsMount mounts the root file system.
	RootfsMount = "rootfs.mount"
	// BundleCheck looks whether a wasm container can have what config.json asks for.
	BundleCheck = "bundle.check"
	// SeccompCompile makes filters of the seccomp profile in it.
	SeccompCompile = "seccomp.compile"
	// CgroupCreate makes the cgroup, while other stages go on.
	CgroupCreate = "cgroup.create"
	// StdioOpen opens the standard streams of a process.
	StdioOpen = "stdio.open"
	// LoggerStart starts the logger among them, and waits until that is ready.
	LoggerStart = "logger.start"
	// SandboxPrepare makes the mount namespace in which the walls are built.
	SandboxPrepare = "sandbox.prepare"
	// InstanceSpawn starts the instance process.
	InstanceSpawn = "instance.spawn"
	// SandboxBuild makes the mounts and sets the limits around it.
	SandboxBuild = "sandbox.build"
	// SandboxMount makes one of those mounts, where that took a millisecond or
	// longer, or failed.
	SandboxMount = "sandbox.mount"
	// SandboxDevices makes the devices, likewise.
	SandboxDevices = "sandbox.devices"
	// SandboxFollow lists the mounts of the host that are to be followed, likewise.
	SandboxFollow = "sandbox.follow"
	// SandboxClone clones the root file system and what is mounted in it, likewise.
	SandboxClone = "sandbox.clone"
	// SandboxProtect hides and protects what the specification says, likewise.
	SandboxProtect = "sandbox.protect"
	// HookPrestart runs one hook of the specification, of this kind.
	HookPrestart = "hook.prestart"
	// HookCreateRuntime runs one of this kind.
	HookCreateRuntime = "hook.createRuntime"
	// HookCreateContainer runs one of this kind, in the container's namespaces.
	HookCreateContainer = "hook.createContainer"
	// HookPoststart runs one of this kind.
	HookPoststart = "hook.poststart"
	// HookPoststop runs one of this kind.
	HookPoststop = "hook.poststop"
	// ModuleResolve finds the module, and reads it for its digest if it is a file.
	ModuleResolve = "module.resolve"
	// ImageResolve asks containerd which layer of the container's image is the module.
	ImageResolve = "image.resolve"
	// ModuleCompile finds what it was compiled to, or has it compiled.
	ModuleCompile = "module.compile"
	// CompilerWait waits for somebody else who compiles the same module.
	CompilerWait = "compiler.wait"
	// CompilerQueue waits until fewer modules are compiled on the node.
	CompilerQueue = "compiler.queue"
	// LayerRead reads that layer from containerd's content store.
	LayerRead = "layer.read"
	// CompilerSpawn starts the compile process.
	CompilerSpawn = "compiler.spawn"
	// ModuleTranslate compiles the module, in that process.
	ModuleTranslate = relay.ModuleTranslate
	// SandboxEnter locks the instance process in.
	SandboxEnter = "sandbox.enter"
	// TaskExit is what happens between the exit of a process and the answer to who
	// waits for it: its last output is read, its exit is recorded and announced.
	TaskExit = "task.exit"
	// StdioClose closes the standard streams; a logger writes what it has, and ends.
	StdioClose = "stdio.close"
	// RootfsUnmount unmounts the root file system.
	RootfsUnmount = "rootfs.unmount"
	// CgroupDestroy removes the cgroup.
	CgroupDestroy = "cgroup.destroy"
)

// Stages of an operation on a Linux container: calls of containerd's own service
// for runc.
const (
	// RuncCreate makes the container.
	RuncCreate = "runc.create"
	// RuncStart starts it, or an exec.
	RuncStart = "runc.start"
	// RuncDelete removes it, or an exec.
	RuncDelete = "runc.delete"
)

// Events.
const (
	// EventExit is the exit of the process that a task.wait waits for. Its time is
	// the one that containerd is told.
	EventExit = "exit"
	// EventKill is a signal that a client has had sent.
	EventKill = "kill"
	// EventOOM is a process of the container killed by the kernel for want of memory.
	EventOOM = "oom"
	// EventCacheCorrupt is when an entry of the compile cache was found not to be what had
	// been written, and dropped.
	EventCacheCorrupt = "cache.corrupt"
	// EventCacheBypassed is when a module has to be compiled for one use, as the cache
	// cannot be used.
	EventCacheBypassed = "cache.bypassed"
	// EventExecsEnded is when the processes beside the container's first have ended.
	EventExecsEnded = "execs.ended"
	// EventExitRecorded is when the exit is on disk.
	EventExitRecorded = "exit.recorded"
	// EventStdioDrained is when the client has read the last output, or is given up.
	EventStdioDrained = "stdio.drained"
)

// Stages in the instance process.
const (
	// InstancePrepare is from its first instruction until it is ready for a module.
	InstancePrepare = relay.InstancePrepare
	// ModuleLoad maps the compiled module and checks it.
	ModuleLoad = relay.ModuleLoad
	// ModuleInstantiate makes the guest: its memory, its imports, its start function.
	ModuleInstantiate = relay.ModuleInstantiate
	// ModuleStart ends as the guest is entered, so that a long run shows at once.
	ModuleStart = relay.ModuleStart
	// ModuleRun is the guest's run, to its end.
	ModuleRun = relay.ModuleRun
)

// Attributes that the semantic conventions have.
const (
	// ContainerID is containerd's id of the container. A string.
	ContainerID = semconv.ContainerIDKey
	// ContainerName is what the pod calls the container. A string.
	ContainerName = semconv.ContainerNameKey
	// ContainerImageName is the name of the container's image, without tag and digest.
	// A string.
	ContainerImageName = semconv.ContainerImageNameKey
	// ContainerImageTags is the tag that it was asked for by. A list of one string.
	ContainerImageTags = semconv.ContainerImageTagsKey
	// ContainerImageRepoDigests is the name with the digest that it was asked for by.
	// A list of one string.
	ContainerImageRepoDigests = semconv.ContainerImageRepoDigestsKey
	// ContainerRuntimeName is "containerd".
	ContainerRuntimeName = semconv.ContainerRuntimeNameKey
	// ContainerRuntimeDescription is the name of this shim's runtime to containerd.
	ContainerRuntimeDescription = semconv.ContainerRuntimeDescriptionKey
	// K8SNamespaceName is the namespace of the container's pod. A string.
	K8SNamespaceName = semconv.K8SNamespaceNameKey
	// K8SPodName is the name of its pod. A string.
	K8SPodName = semconv.K8SPodNameKey
	// K8SPodUID is the uid of its pod. A string.
	K8SPodUID = semconv.K8SPodUIDKey
	// K8SContainerName is the name of the container in its pod; a pod's own has none.
	// A string.
	K8SContainerName = semconv.K8SContainerNameKey
	// RPCSystemName is "ttrpc".
	RPCSystemName = semconv.RPCSystemNameKey
	// RPCMethod is the service and the method that was called: "containerd.task.v3.Task/Create",
	// or the same of v2. A string.
	RPCMethod = semconv.RPCMethodKey
	// RPCResponseStatusCode is the status of the answer, by gRPC's name: "OK",
	// "NOT_FOUND". A string.
	RPCResponseStatusCode = semconv.RPCResponseStatusCodeKey
	// ProcessPID is the pid, on the host, of the process the operation was on. An int.
	ProcessPID = semconv.ProcessPIDKey
	// ProcessExitCode is how that process ended: 0 to 255, 128 and the number for a
	// signal, 134 for a trap. An int.
	ProcessExitCode = semconv.ProcessExitCodeKey
	// ProcessExecutablePath is the program that a hook or a logger is, on the host. A string.
	ProcessExecutablePath = semconv.ProcessExecutablePathKey
	// ErrorType is the kind of the error of a span that failed. A string, see
	// [ErrorTypeOf].
	ErrorType = semconv.ErrorTypeKey
)

// Attributes of ours.
const (
	// ContainerdNamespace is the namespace of containerd that the container is in. A string.
	ContainerdNamespace = attribute.Key("containerd.namespace")
	// SandboxID is containerd's id of the pod that the container is in. A string.
	SandboxID = attribute.Key("containerd.sandbox.id")
	// ExecID is the id of the process the operation was on, if it is not the
	// container's first. A string.
	ExecID = attribute.Key("containerd.exec.id")
	// KillSignal is the number of the signal that was asked for, 0 to 64. An int.
	KillSignal = attribute.Key("wasm.kill.signal")
	// Engine is what runs the module: "compiler" or "interpreter". A string.
	Engine = attribute.Key("wasm.engine")
	// ModulePath is where the module is, in the container. A string.
	ModulePath = attribute.Key("wasm.module.path")
	// ModuleSource is where that comes from. A string, see below.
	ModuleSource = attribute.Key("wasm.module.source")
	// ModuleDigest is the digest of the module: "sha256:" and 64 hexadecimal digits.
	ModuleDigest = attribute.Key("wasm.module.digest")
	// ModuleSize is the length of the module, bytes. An int.
	ModuleSize = attribute.Key(relay.ModuleSize)
	// ModuleFunction is the name of the exported function that is the guest's entry. A string.
	ModuleFunction = attribute.Key(relay.ModuleFunction)
	// CompiledSize is the length of what it was compiled to, bytes. An int.
	CompiledSize = attribute.Key("wasm.compiled.size")
	// CacheHit tells whether the module had been compiled before. A bool.
	CacheHit = attribute.Key("wasm.cache.hit")
	// MountDestination is where a mount is, in the container. A string.
	MountDestination = attribute.Key("oci.mount.destination")
)

// Values of [ModuleSource].
const (
	// ModuleSourceImage is for a file of the root file system.
	ModuleSourceImage = "image"
	// ModuleSourceMount is for a file of what is mounted in it.
	ModuleSourceMount = "mount"
	// ModuleSourceLayer is for a layer of the image.
	ModuleSourceLayer = "layer"
)

// Fields of a line in the log: those that OpenTelemetry has for logs of other formats.
// The others are called as attributes of spans are.
//
// See https://opentelemetry.io/docs/specs/otel/compatibility/logging_trace_context/.
const (
	// LogContainerID is containerd's id of the container, as in containerd's own lines.
	LogContainerID = "id"
	// LogTraceID is the trace of the container, 32 hexadecimal digits.
	LogTraceID = "trace_id"
	// LogSpanID is the span of the operation, 16 hexadecimal digits.
	LogSpanID = "span_id"
)

// What the shim says of what a guest makes.
const (
	// GuestDropped is how many calls of a guest came to nothing: too many, too deep, or
	// without sense. An int, on module.run.
	GuestDropped = attribute.Key(relay.GuestDropped)
	// GuestUnfinished says that a guest's span ended with the run. A bool.
	GuestUnfinished = attribute.Key("wasm.guest.unfinished")
	// GuestLogLevel is error, warn, info, debug or trace; unknown for any other. A
	// string, on an event.
	GuestLogLevel = attribute.Key("wasm.guest.log.level")
	// GuestLogMessage is what the guest logged. A string, on an event.
	GuestLogMessage = attribute.Key("wasm.guest.log.message")
)

// Events of ours.
const (
	// GuestLog is what a guest logged, on its innermost span, or on its run.
	GuestLog = "log"
)

// Metrics. All are of one shim: those of its resource have its id, see docs/telemetry.md.
const (
	// StageDuration is how long the spans of a container's life take, but for waiting and
	// the run, sampled or not. A histogram, s.
	StageDuration = "wasm.stage.duration"
	// CacheLookups are the modules that were looked up in the compile cache, and found or
	// compiled. A counter, {lookup}.
	CacheLookups = "wasm.cache.lookups"
	// CacheModuleSize is the length of those modules. A histogram, By.
	CacheModuleSize = "wasm.cache.module.size"
	// CacheCodeSize is the length of what they were compiled to. A histogram, By.
	CacheCodeSize = "wasm.cache.code.size"
	// CacheCorruptions are entries of the compile cache that were not what had been written,
	// and were made anew. A counter, {entry}.
	CacheCorruptions = "wasm.cache.corruptions"
	// CacheEvictions are entries that were removed to make room. A counter, {entry}.
	CacheEvictions = "wasm.cache.evictions"
	// CacheBypasses are modules that were compiled for one use, as the cache could not be
	// used. A counter, {lookup}.
	CacheBypasses = "wasm.cache.bypasses" //nolint:gosec // no credential
	// InstanceCount is how many guests run. An up-down counter, {instance}.
	InstanceCount = "wasm.instance.count"
	// InstanceExits are the guests that have ended. A counter, {exit}.
	InstanceExits = "wasm.instance.exits"
	// MemoryUsage is the size of the linear memories of the guests that run, touched or
	// not. An up-down counter, By.
	MemoryUsage = "wasm.memory.usage"
	// MemoryPeak is the size that the linear memory of a guest had at its end: it never
	// shrinks. A histogram, By.
	MemoryPeak = "wasm.memory.peak"
	// EventDropped are task events that containerd will never see: the oldest of more than
	// 4096 that it has not taken. A counter, {event}.
	EventDropped = "wasm.event.dropped"
	// SpanDropped are spans of instance processes that were not in order, and calls of
	// guests that came to nothing, as [GuestDropped]. A counter, {span}.
	SpanDropped = "wasm.span.dropped"
)

// Attributes of metrics that spans do not have. All of them have few values.
const (
	// StageName is the name of the span that is measured. A string.
	StageName = attribute.Key("wasm.stage")
	// ExitReason is how a guest has ended: "zero" and "nonzero" for a status of its own,
	// "trap", "signal", "oom". A string.
	ExitReason = attribute.Key("wasm.exit.reason")
)

// Values of [ExitReason].
const (
	ExitZero    = "zero"
	ExitNonzero = "nonzero"
	ExitTrap    = "trap"
	ExitSignal  = "signal"
	ExitOOM     = "oom"
)
