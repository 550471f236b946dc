package shim

import (
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The fields of a specification by what has them, as config.json has them. What is
// here is not what a wasm container heeds but what it can be asked: README.md has
// the fields that mean nothing to it, and those that it is refused for, and every
// other one is honoured.
var specFields = map[string]string{
	"":                     "ociVersion process root hostname domainname mounts hooks annotations linux solaris windows vm zos freebsd",
	"process":              "terminal consoleSize user args commandLine env cwd capabilities rlimits noNewPrivileges apparmorProfile oomScoreAdj scheduler selinuxLabel ioPriority execCPUAffinity",
	"process.consoleSize":  "height width",
	"process.user":         "uid gid umask additionalGids username",
	"process.capabilities": "bounding effective inheritable permitted ambient",
	"process.rlimits":      "type hard soft",
	"process.scheduler":    "policy nice priority flags runtime deadline period",
	"process.ioPriority":   "class priority", "process.execCPUAffinity": "initial final",
	"root":   "path readonly",
	"mounts": "destination type source options uidMappings gidMappings", "mounts.uidMappings": "containerID hostID size", "mounts.gidMappings": "containerID hostID size",
	"hooks":          "prestart createRuntime createContainer startContainer poststart poststop",
	"hooks.prestart": "path args env timeout", "hooks.createRuntime": "path args env timeout", "hooks.createContainer": "path args env timeout", "hooks.startContainer": "path args env timeout",
	"hooks.poststart": "path args env timeout", "hooks.poststop": "path args env timeout",
	"linux":             "uidMappings gidMappings sysctl resources cgroupsPath namespaces devices netDevices seccomp rootfsPropagation maskedPaths readonlyPaths mountLabel intelRdt memoryPolicy personality timeOffsets",
	"linux.uidMappings": "containerID hostID size", "linux.gidMappings": "containerID hostID size",
	"linux.resources":                                "devices memory cpu pids blockIO hugepageLimits network rdma unified",
	"linux.resources.devices":                        "allow type major minor access",
	"linux.resources.memory":                         "limit reservation swap kernel kernelTCP swappiness disableOOMKiller useHierarchy checkBeforeUpdate",
	"linux.resources.cpu":                            "shares quota burst period realtimeRuntime realtimePeriod cpus mems idle",
	"linux.resources.pids":                           "limit",
	"linux.resources.blockIO":                        "weight leafWeight weightDevice throttleReadBpsDevice throttleWriteBpsDevice throttleReadIOPSDevice throttleWriteIOPSDevice",
	"linux.resources.blockIO.weightDevice":           "major minor weight leafWeight",
	"linux.resources.blockIO.throttleReadBpsDevice":  "major minor rate",
	"linux.resources.blockIO.throttleWriteBpsDevice": "major minor rate", "linux.resources.blockIO.throttleReadIOPSDevice": "major minor rate",
	"linux.resources.blockIO.throttleWriteIOPSDevice": "major minor rate",
	"linux.resources.hugepageLimits":                  "pageSize limit",
	"linux.resources.network":                         "classID priorities", "linux.resources.network.priorities": "name priority",
	"linux.resources.rdma":   "hcaHandles hcaObjects",
	"linux.namespaces":       "type path",
	"linux.devices":          "path type major minor fileMode uid gid",
	"linux.seccomp":          "defaultAction defaultErrnoRet architectures flags listenerPath listenerMetadata syscalls",
	"linux.seccomp.syscalls": "names action errnoRet args", "linux.seccomp.syscalls.args": "index value valueTwo op",
	"linux.memoryPolicy": "mode nodes flags",
	"linux.personality":  "domain flags", "linux.netDevices": "name",
	"linux.intelRdt":    "closID schemata l3CacheSchema memBwSchema enableMonitoring",
	"linux.timeOffsets": "secs nanosecs",
}

var otherPlatforms = map[string]bool{"solaris": true, "windows": true, "vm": true, "zos": true, "freebsd": true}

// exceptions are the fields that README.md says are not honoured, and what becomes
// of them: "ignored" or "refused".
func exceptions(t *testing.T) map[string]string {
	t.Helper()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`.+`) \\| (ignored|refused) \\| .+ \\|$").FindAllStringSubmatch(string(readme), -1) {
		for _, field := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			if found[field[1]] != "" {
				t.Errorf("README.md: %s is there twice", field[1])
			}
			found[field[1]] = row[2]
		}
	}
	return found
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// fieldsOf are those of a type, the embedded ones' in the place of those.
func fieldsOf(t reflect.Type) (fields []reflect.StructField) {
	for i := range t.NumField() {
		if f := t.Field(i); f.Anonymous {
			fields = append(fields, fieldsOf(f.Type)...)
		} else {
			fields = append(fields, f)
		}
	}
	return fields
}

// A field that a release of the specification adds must not be ignored for want of
// anybody who has heard of it.
func TestEveryFieldOfTheSpecificationIsHonouredOrSaidNotToBe(t *testing.T) {
	except := exceptions(t)
	known, exist := maps.Clone(specFields), map[string]bool{}
	var look func(of reflect.Type, at string)
	look = func(of reflect.Type, at string) {
		for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice || of.Kind() == reflect.Map {
			of = of.Elem()
		}
		if of.Kind() != reflect.Struct {
			return
		}
		names := strings.Fields(known[at])
		delete(known, at)
		for _, f := range fieldsOf(of) {
			name := jsonName(f)
			path := strings.TrimPrefix(at+"."+name, ".")
			exist[path] = true
			if !slices.Contains(names, name) {
				t.Errorf("%s: a field that nobody has decided about", path)
				continue
			}
			if !otherPlatforms[path] {
				look(f.Type, path)
			}
		}
		for _, name := range names {
			if !exist[strings.TrimPrefix(at+"."+name, ".")] {
				t.Errorf("%s has no field %s", at, name)
			}
		}
	}
	look(reflect.TypeFor[specs.Spec](), "")
	for at := range known {
		t.Errorf("%s: the specification has nothing of that name", at)
	}
	for path := range except {
		if !exist[path] {
			t.Errorf("README.md: the specification has no field %s", path)
		}
	}
}

// What is honoured or refused must be read, what is ignored need not be.
func TestTheFieldsThatAreHeededAreRead(t *testing.T) {
	except := exceptions(t)
	for at, types := range map[string][2]reflect.Type{
		"":       {reflect.TypeFor[specs.Spec](), reflect.TypeFor[spec]()},
		"linux.": {reflect.TypeFor[specs.Linux](), reflect.TypeFor[specLinux]()},
	} {
		var read []string
		for _, f := range fieldsOf(types[1]) {
			read = append(read, jsonName(f))
		}
		for _, f := range fieldsOf(types[0]) {
			name := jsonName(f)
			if ignored := except[at+name] == "ignored"; ignored == slices.Contains(read, name) {
				t.Errorf("%s%s: ignored %v, read %v", at, name, ignored, !ignored)
			}
		}
	}
}
