// A Linux program in the pod of wasm containers, root there, that shares their pid
// namespace: it looks for what their processes leave open to it in procfs.
//
//	neighbour exe              says whether a program that runs, or has run, can be written
//	neighbour files FILE       says where a file of the host is in sight
//	neighbour memory TEXT      says whether a process has the text in its memory or environment
//
// Each looks at every process that comes up, for as long as it runs, and says
// "ready" first.
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int can_read(const char *path) {
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return 0;
	close(fd);
	return 1;
}

static void say(const char *what, int pid, const char *more) {
	printf("%s %d %s\n", what, pid, more);
	fflush(stdout);
}

// exe keeps the program of a process open, as a path, until it can be opened for
// writing or turns out never to be.
static void exe(int pid) {
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	int fd;
	while ((fd = open(path, O_PATH | O_CLOEXEC)) < 0) {
		if (errno != EACCES) // it has more rights until it executes the program
			return;
		usleep(100);
	}
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	for (int i = 0; i < 30000; i++) {
		int w = open(path, O_WRONLY | O_CLOEXEC);
		if (w >= 0) {
			close(w);
			say("WRITABLE", pid, "exe");
			break;
		}
		if (errno != ETXTBSY) {
			say("refused", pid, strerror(errno));
			break;
		}
		usleep(1000); // until nobody runs it
	}
	close(fd);
}

// find says that a path leads to the file, and by which program.
static void find(int pid, const char *path) {
	if (!can_read(path))
		return;
	char comm[64], name[32] = "?", more[640];
	snprintf(comm, sizeof comm, "/proc/%d/comm", pid);
	FILE *f = fopen(comm, "r");
	if (f) {
		if (fgets(name, sizeof name, f))
			name[strcspn(name, "\n")] = 0;
		fclose(f);
	}
	snprintf(more, sizeof more, "%s %s", name, path);
	say("FOUND", pid, more);
}

static const char *up = "/../../../../../../../../../../..";

static void files(int pid, const char *file) {
	char path[512], seen[128];
	const char *from[] = {"root", "cwd", "root/covered", "root/covered/host", "root/attached", "root/rootfs"};
	int looked = 0;
	for (int round = 0; round < 400; round++) {
		for (unsigned i = 0; i < sizeof from / sizeof *from; i++) {
			snprintf(path, sizeof path, "/proc/%d/%s%s", pid, from[i], file);
			find(pid, path);
			// ".." stops at the root of who looks, and that is not the one of the process.
			snprintf(path, sizeof path, "/proc/%d/%s%s%s", pid, from[i], up, file);
			find(pid, path);
		}
		snprintf(path, sizeof path, "/proc/%d/root", pid);
		ssize_t n = readlink(path, seen, sizeof seen - 1);
		if (n < 0 && errno == ENOENT)
			break;
		looked += n > 0;
	}
	if (looked > 0)
		say("looked", pid, "");
}

static int contains(const char *data, size_t n, const char *text) {
	return memmem(data, n, text, strlen(text)) != NULL;
}

// memory stops a process, wherever it is in its life, and reads it. It tries for as
// long as there is one: what may not be looked at yet may be once a program is executed.
static void memory(int pid, const char *text) {
	static char buf[1 << 20];
	char path[64], line[512];
	while (ptrace(PTRACE_SEIZE, pid, 0, 0) != 0)
		if (errno != EPERM)
			return;
	ptrace(PTRACE_INTERRUPT, pid, 0, 0);
	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	ssize_t n = readlink(path, line, sizeof line - 1);
	line[n < 0 ? 0 : n] = 0;
	say("stopped", pid, line);
	snprintf(path, sizeof path, "/proc/%d/environ", pid);
	int fd = open(path, O_RDONLY);
	n = read(fd, buf, sizeof buf);
	if (n > 0 && contains(buf, n, text))
		say("SECRET", pid, "environ");
	close(fd);
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	FILE *maps = fopen(path, "r");
	snprintf(path, sizeof path, "/proc/%d/mem", pid);
	int mem = open(path, O_RDONLY);
	while (maps && fgets(line, sizeof line, maps)) {
		unsigned long from, to;
		char mode[8];
		if (sscanf(line, "%lx-%lx %7s", &from, &to, mode) != 3 || mode[1] != 'w')
			continue;
		for (unsigned long at = from; at < to; at += sizeof buf) {
			n = pread(mem, buf, to - at < sizeof buf ? to - at : sizeof buf, at);
			if (n <= 0)
				break;
			if (contains(buf, n, text)) {
				say("SECRET", pid, "memory");
				break;
			}
		}
	}
	if (maps)
		fclose(maps);
	close(mem);
	waitpid(pid, NULL, __WALL);
	ptrace(PTRACE_DETACH, pid, 0, 0);
}

int main(int argc, char **argv) {
	static char known[1 << 22];
	if (argc < 2)
		return 2;
	int proc = open("/proc", O_RDONLY | O_DIRECTORY);
	for (int first = 1;; first = 0) {
		DIR *d = fdopendir(dup(proc));
		rewinddir(d);
		for (struct dirent *e; (e = readdir(d));) {
			if (!isdigit(e->d_name[0]))
				continue;
			int pid = atoi(e->d_name);
			if (known[pid])
				continue;
			known[pid] = 1;
			if (first || pid == getpid())
				continue;
			if (!strcmp(argv[1], "exe")) {
				int child = fork();
				if (child == 0) {
					exe(pid);
					_exit(0);
				}
				known[child] = 1;
			} else if (!strcmp(argv[1], "files")) {
				files(pid, argv[2]);
			} else {
				memory(pid, argv[2]);
			}
		}
		closedir(d);
		if (first) {
			printf("ready\n");
			fflush(stdout);
		}
	}
}
