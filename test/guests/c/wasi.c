/* Makes the calls of WASI preview 1 that its arguments say, with no libc in
   between that would clean a path or hold a call back, and prints a line for each:

     open N D PATH FLAGS   N names the descriptor from then on; D is another's, "/" the preopen's.
                           FLAGS: c(reat) x(excl) t(runc) d(irectory) n(ofollow) w(rite) r(ead, too), or "-"
     read N, put N TEXT, ls N, close N, fstat N
     stat D PATH, lstat, mkdir, rmdir, unlink, readlink, utimes
     rename D A E B, link D A E B, linkf (follows), symlink TEXT D PATH
     exists D PATH         waits until it is there
     swap D A B LINK STOP  until STOP is there: renames A to B, LINK to A, and back
     flip D A B TEXT STOP  the same with a symbolic link to TEXT, made each time

   In a PATH or TEXT "%XX" is a byte, and "*N*S" N times S, up to its end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>

static char *const *arg;
static struct { const char *name; __wasi_fd_t fd; } fds[2000] = {{"/", 3}};
static int nfds = 1;

static const char *next(void) { return *arg ? *arg++ : ""; }

struct text { char *s; size_t n; };

static struct text text(void) {
	const char *s = next();
	long times = 1;
	if (*s == '*') {
		char *end;
		times = strtol(s + 1, &end, 10);
		s = end + 1;
	}
	struct text t = {malloc(strlen(s) * times + 1), 0};
	for (; times > 0; times--)
		for (const char *c = s; *c; c++) {
			char hex[3] = {0};
			if (*c == '%' && c[1] && c[2]) {
				memcpy(hex, c + 1, 2);
				t.s[t.n++] = strtol(hex, NULL, 16);
				c += 2;
			} else
				t.s[t.n++] = *c;
		}
	t.s[t.n] = 0;
	return t;
}

static __wasi_fd_t fd(void) {
	const char *name = next();
	for (int i = nfds - 1; i >= 0; i--)
		if (!strcmp(fds[i].name, name))
			return fds[i].fd;
	return atoi(name);
}

/* wasi-libc's own declarations of these take strings that end with a zero byte. */
#define IMPORT(f) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#f)))
typedef int32_t i;
IMPORT(path_open) i path_open(i, i, const char *, size_t, i, int64_t, int64_t, i, i *);
IMPORT(path_filestat_get) i path_filestat_get(i, i, const char *, size_t, __wasi_filestat_t *);
IMPORT(path_filestat_set_times) i path_filestat_set_times(i, i, const char *, size_t, int64_t, int64_t, i);
IMPORT(path_create_directory) i path_create_directory(i, const char *, size_t);
IMPORT(path_remove_directory) i path_remove_directory(i, const char *, size_t);
IMPORT(path_unlink_file) i path_unlink_file(i, const char *, size_t);
IMPORT(path_rename) i path_rename(i, const char *, size_t, i, const char *, size_t);
IMPORT(path_link) i path_link(i, i, const char *, size_t, i, const char *, size_t);
IMPORT(path_symlink) i path_symlink(const char *, size_t, i, const char *, size_t);
IMPORT(path_readlink) i path_readlink(i, const char *, size_t, char *, size_t, size_t *);

static i stat_(i d, i follow, struct text p, __wasi_filestat_t *st) { return path_filestat_get(d, follow, p.s, p.n, st); }
static i rename_(i d, struct text a, struct text b) { return path_rename(d, a.s, a.n, d, b.s, b.n); }

static void swap(int flip) {
	i d = fd();
	struct text a = text(), b = text(), l = text(), stop = text();
	__wasi_filestat_t st;
	int n = 0;
	for (; stat_(d, 1, stop, &st); n++) {
		rename_(d, a, b);
		if (flip)
			path_symlink(l.s, l.n, d, a.s, a.n);
		else
			rename_(d, l, a);
		if (flip)
			path_unlink_file(d, a.s, a.n);
		else
			rename_(d, a, l);
		rename_(d, b, a);
	}
	printf("swapped: %s\n", n > 100 ? "often" : "seldom");
}

static void ls(__wasi_fd_t f) {
	static uint8_t buf[1 << 16];
	__wasi_size_t used;
	__wasi_errno_t e = __wasi_fd_readdir(f, buf, sizeof buf, 0, &used);
	printf("ls: %d", e);
	for (__wasi_size_t at = 0; !e && at + sizeof(__wasi_dirent_t) <= used;) {
		__wasi_dirent_t d;
		memcpy(&d, buf + at, sizeof d);
		at += sizeof d;
		if (at + d.d_namlen > used)
			break;
		printf(" %.*s", (int)d.d_namlen, (char *)buf + at);
		at += d.d_namlen;
	}
	printf("\n");
}

int main(int argc, char **argv) {
	arg = argv + 1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (*arg) {
		const char *op = next();
		__wasi_filestat_t st;
		if (!strcmp(op, "open")) {
			const char *name = next();
			i d = fd();
			struct text p = text();
			const char *f = next();
			i oflags = (strchr(f, 'c') ? 1 : 0) | (strchr(f, 'd') ? 2 : 0) | (strchr(f, 'x') ? 4 : 0) | (strchr(f, 't') ? 8 : 0);
			int64_t rights = strchr(f, 'w') ? __WASI_RIGHTS_FD_WRITE | (strchr(f, 'r') ? __WASI_RIGHTS_FD_READ : 0) : __WASI_RIGHTS_FD_READ | __WASI_RIGHTS_FD_READDIR;
			i opened = -1, e = path_open(d, !strchr(f, 'n'), p.s, p.n, oflags, rights, rights, 0, &opened);
			fds[nfds].name = name;
			fds[nfds++].fd = opened;
			printf("open: %d\n", e);
		} else if (!strcmp(op, "read")) {
			static uint8_t buf[4096];
			__wasi_iovec_t v = {buf, sizeof buf};
			__wasi_size_t n = 0;
			__wasi_errno_t e = __wasi_fd_read(fd(), &v, 1, &n);
			printf("read: %d %.*s\n", e, (int)n, buf);
		} else if (!strcmp(op, "put")) {
			__wasi_fd_t f = fd();
			struct text t = text();
			__wasi_ciovec_t v = {(uint8_t *)t.s, t.n};
			__wasi_size_t n = 0;
			printf("put: %d\n", __wasi_fd_write(f, &v, 1, &n));
		} else if (!strcmp(op, "ls")) {
			ls(fd());
		} else if (!strcmp(op, "close")) {
			printf("close: %d\n", __wasi_fd_close(fd()));
		} else if (!strcmp(op, "fstat")) {
			i e = __wasi_fd_filestat_get(fd(), &st);
			printf("fstat: %d %d\n", e, e ? 0 : st.filetype);
		} else if (!strcmp(op, "stat") || !strcmp(op, "lstat")) {
			i d = fd(), e = stat_(d, *op == 's', text(), &st);
			printf("%s: %d %d\n", op, e, e ? 0 : st.filetype);
		} else if (!strcmp(op, "exists")) {
			i d = fd();
			struct text p = text();
			while (stat_(d, 1, p, &st)) {
				__wasi_subscription_t sub = {.u.tag = __WASI_EVENTTYPE_CLOCK, .u.u.clock = {.id = __WASI_CLOCKID_MONOTONIC, .timeout = 5000000}};
				__wasi_event_t ev;
				__wasi_size_t n;
				__wasi_errno_t ignored = __wasi_poll_oneoff(&sub, &ev, 1, &n);
				(void)ignored;
			}
			printf("exists\n");
		} else if (!strcmp(op, "mkdir") || !strcmp(op, "rmdir") || !strcmp(op, "unlink")) {
			i d = fd();
			struct text p = text();
			i e = *op == 'm' ? path_create_directory(d, p.s, p.n) : *op == 'r' ? path_remove_directory(d, p.s, p.n) : path_unlink_file(d, p.s, p.n);
			printf("%s: %d\n", op, e);
		} else if (!strcmp(op, "readlink")) {
			static char buf[8192];
			size_t n = 0;
			i d = fd();
			struct text p = text();
			i e = path_readlink(d, p.s, p.n, buf, sizeof buf, &n);
			printf("readlink: %d %.*s\n", e, (int)n, buf);
		} else if (!strcmp(op, "utimes")) {
			i d = fd();
			struct text p = text();
			printf("utimes: %d\n", path_filestat_set_times(d, 1, p.s, p.n, 1000000000, 1000000000, 1 | 4));
		} else if (!strcmp(op, "rename") || !strcmp(op, "link") || !strcmp(op, "linkf")) {
			i d = fd();
			struct text a = text();
			i e = fd();
			struct text b = text();
			i err = *op == 'r' ? path_rename(d, a.s, a.n, e, b.s, b.n) : path_link(d, op[4] == 'f', a.s, a.n, e, b.s, b.n);
			printf("%s: %d\n", op, err);
		} else if (!strcmp(op, "symlink")) {
			struct text t = text();
			i d = fd();
			struct text p = text();
			printf("symlink: %d\n", path_symlink(t.s, t.n, d, p.s, p.n));
		} else if (!strcmp(op, "swap") || !strcmp(op, "flip")) {
			swap(*op == 'f');
		} else {
			printf("unknown: %s\n", op);
			return 2;
		}
	}
	return 0;
}
