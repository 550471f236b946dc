/* Takes what it can get of something, and says how far it came: limits WHAT [...]. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wasi/api.h>

static void say(const char *what, unsigned long n) {
	printf("%s: %lu\n", what, n);
	fflush(stdout);
}

/* All there is, a MiB at a time. */
static unsigned long memory(void) {
	static char *volatile held; /* or the compiler does without */
	unsigned long mib = 0;
	while ((held = malloc(1 << 20)) != NULL) {
		memset(held, 1, 1 << 20);
		mib++;
	}
	return mib;
}

static void file(const char *path, unsigned long mib) {
	static char block[1 << 20];
	int fd = open(path, O_CREAT | O_WRONLY, 0600);
	for (unsigned long i = 0; i < mib; i++) {
		if (write(fd, block, sizeof block) != sizeof block) {
			printf("error: %s\n", strerror(errno));
			say("written", i);
			exit(1);
		}
	}
	say("written", mib);
}

static int descend(volatile int depth) {
	volatile int n = depth;
	return n < 0 ? n : descend(n + 1) + n;
}

int main(int argc, char **argv) {
	const char *what = argc > 1 ? argv[1] : "";
	setvbuf(stdout, NULL, _IOLBF, 256);
	if (strcmp(what, "memory") == 0) { /* and calls its host, which has no less to do then */
		unsigned long mib = memory();
		struct stat st;
		for (int i = 0; i < 20000; i++)
			if (stat("/", &st) != 0)
				return 1;
		say("mib", mib);
	} else if (strcmp(what, "again") == 0) { /* for every line of its input, and keeps it */
		for (int c; (c = getchar()) != EOF;)
			if (c == '\n')
				say("more", memory());
	} else if (strcmp(what, "file") == 0) {
		file(argv[2], strtoul(argv[3], NULL, 10));
	} else if (strcmp(what, "later") == 0) { /* than the end of its input */
		while (getchar() != EOF)
			;
		file(argv[2], strtoul(argv[3], NULL, 10));
	} else if (strcmp(what, "recurse") == 0) {
		say("depth", descend(0));
	} else if (strcmp(what, "open") == 0) {
		unsigned long n = 0;
		while (open(argv[2], O_RDONLY) >= 0)
			n++;
		printf("error: %s\n", strerror(errno));
		say("open", n);
	} else if (strcmp(what, "calls") == 0) {
		/* Counts and sizes beyond all reason: whatever comes, it returns or traps. */
		__wasi_ciovec_t *iovs = 0;
		size_t done;
		say("fd_write", __wasi_fd_write(1, iovs, 0xffffffff, &done));
		say("fd_read", __wasi_fd_read(0, (__wasi_iovec_t *)iovs, 0x3fffffff, &done));
		say("fd_readdir", __wasi_fd_readdir(3, (uint8_t *)16, 0xffffffff, 0, &done));
		say("random_get", __wasi_random_get((uint8_t *)16, 0xfffffff0));
		say("poll_oneoff", __wasi_poll_oneoff((void *)16, (void *)16, 0x4000001, &done));
		say("fd_allocate", __wasi_fd_allocate(1, 0, ~0ull));
	} else if (strcmp(what, "subscriptions") == 0) { /* 2^28 of 48 bytes are, in 32 bits, none */
		size_t done;
		say("poll_oneoff", __wasi_poll_oneoff((void *)16, (void *)16, 1u << 28, &done));
	} else if (strcmp(what, "path") == 0) { /* a name as long as its memory */
		unsigned long mib = strtoul(argv[2], NULL, 10);
		char *name = malloc(mib << 20);
		__wasi_filestat_t st;
		if (name == NULL)
			return 1;
		memset(name, 'x', mib << 20);
		name[(mib << 20) - 1] = 0;
		say("path", __wasi_path_filestat_get(3, 0, name, &st));
	} else if (strcmp(what, "random") == 0) { /* of all its memory */
		unsigned long mib = strtoul(argv[2], NULL, 10);
		uint8_t *p = malloc(mib << 20);
		say("random", p == NULL ? 1 : __wasi_random_get(p, mib << 20));
	} else if (strcmp(what, "output") == 0) { /* for ever */
		static char block[1 << 16];
		for (memset(block, 'x', sizeof block); write(1, block, sizeof block) > 0;)
			;
	} else {
		printf("unknown: %s\n", what);
		return 2;
	}
	return 0;
}
