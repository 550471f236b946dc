/* Calls every function of WASI preview 1 that has to do with the kernel, in a
   directory it may write, and prints each result. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>

static void result(const char *what, __wasi_errno_t e) { printf("%s: %d\n", what, e); }

int main(int argc, char **argv) {
	(void)argc;
	const __wasi_fd_t root = 3;
	const __wasi_rights_t all = ~0ULL;
	__wasi_fd_t dir, fd, other;
	__wasi_size_t n;
	__wasi_timestamp_t ts;
	__wasi_filestat_t st;
	__wasi_fdstat_t fdst;
	__wasi_filesize_t off;
	uint8_t buf[4096];
	__wasi_ciovec_t out = {(const uint8_t *)"hello", 5};
	__wasi_iovec_t in = {buf, sizeof buf};

	result("path_open directory", __wasi_path_open(root, 0, argv[1], __WASI_OFLAGS_DIRECTORY, all & ~__WASI_RIGHTS_FD_WRITE, all, 0, &dir));
	result("path_create_directory", __wasi_path_create_directory(dir, "d"));
	result("path_open", __wasi_path_open(dir, 0, "d/f", __WASI_OFLAGS_CREAT | __WASI_OFLAGS_EXCL, all, all, __WASI_FDFLAGS_APPEND | __WASI_FDFLAGS_SYNC, &fd));
	result("fd_write", __wasi_fd_write(fd, &out, 1, &n));
	result("fd_close", __wasi_fd_close(fd));
	result("path_open again", __wasi_path_open(dir, 0, "d/f", 0, all, all, 0, &fd));
	result("fd_pwrite", __wasi_fd_pwrite(fd, &out, 1, 3, &n));
	result("fd_seek", __wasi_fd_seek(fd, 1, __WASI_WHENCE_SET, &off));
	result("fd_tell", __wasi_fd_tell(fd, &off));
	result("fd_read", __wasi_fd_read(fd, &in, 1, &n));
	result("fd_pread", __wasi_fd_pread(fd, &in, 1, 0, &n));
	result("fd_advise", __wasi_fd_advise(fd, 0, 10, __WASI_ADVICE_WILLNEED));
	result("fd_allocate", __wasi_fd_allocate(fd, 0, 100));
	result("fd_sync", __wasi_fd_sync(fd));
	result("fd_datasync", __wasi_fd_datasync(fd));
	result("fd_fdstat_get", __wasi_fd_fdstat_get(fd, &fdst));
	result("fd_fdstat_set_flags append", __wasi_fd_fdstat_set_flags(fd, __WASI_FDFLAGS_APPEND));
	result("fd_fdstat_set_flags nonblock", __wasi_fd_fdstat_set_flags(fd, __WASI_FDFLAGS_NONBLOCK));
	result("fd_fdstat_set_flags none", __wasi_fd_fdstat_set_flags(fd, 0));
	result("fd_filestat_get", __wasi_fd_filestat_get(fd, &st));
	result("fd_filestat_set_size", __wasi_fd_filestat_set_size(fd, 50));
	result("fd_filestat_set_times", __wasi_fd_filestat_set_times(fd, 1, 2, __WASI_FSTFLAGS_ATIM | __WASI_FSTFLAGS_MTIM));
	result("path_filestat_get", __wasi_path_filestat_get(dir, 0, "d/f", &st));
	result("path_filestat_set_times", __wasi_path_filestat_set_times(dir, 0, "d/f", 0, 0, __WASI_FSTFLAGS_ATIM_NOW | __WASI_FSTFLAGS_MTIM_NOW));
	result("path_link", __wasi_path_link(dir, 0, "d/f", dir, "d/l"));
	result("path_symlink", __wasi_path_symlink("f", dir, "d/s"));
	result("path_readlink", __wasi_path_readlink(dir, "d/s", buf, sizeof buf, &n));
	result("path_rename", __wasi_path_rename(dir, "d/l", dir, "d/m"));
	result("path_open truncate", __wasi_path_open(dir, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, "d/s", __WASI_OFLAGS_TRUNC, all, all, __WASI_FDFLAGS_DSYNC | __WASI_FDFLAGS_NONBLOCK, &other));
	result("fd_renumber", __wasi_fd_renumber(other, fd));
	result("fd_readdir", __wasi_fd_readdir(dir, buf, sizeof buf, 0, &n));
	result("path_unlink_file", __wasi_path_unlink_file(dir, "d/s"));
	result("path_unlink_file again", __wasi_path_unlink_file(dir, "d/m"));
	result("path_unlink_file last", __wasi_path_unlink_file(dir, "d/f"));
	result("path_remove_directory", __wasi_path_remove_directory(dir, "d"));
	for (__wasi_clockid_t id = 0; id < 2; id++) {
		result("clock_res_get", __wasi_clock_res_get(id, &ts));
		result("clock_time_get", __wasi_clock_time_get(id, 1, &ts));
	}
	result("random_get", __wasi_random_get(buf, sizeof buf));
	result("sched_yield", __wasi_sched_yield());
	__wasi_subscription_t s[2];
	__wasi_event_t ev[2];
	memset(s, 0, sizeof s);
	s[0].u.tag = __WASI_EVENTTYPE_CLOCK;
	s[0].u.u.clock.id = __WASI_CLOCKID_MONOTONIC;
	s[0].u.u.clock.timeout = 1000000;
	result("poll_oneoff clock", __wasi_poll_oneoff(s, ev, 1, &n));
	s[1].u.tag = __WASI_EVENTTYPE_FD_READ;
	s[1].u.u.fd_read.file_descriptor = 0;
	result("poll_oneoff stdin", __wasi_poll_oneoff(s, ev, 2, &n));
	result("fd_fdstat_set_flags stdin", __wasi_fd_fdstat_set_flags(0, __WASI_FDFLAGS_NONBLOCK));
	result("fd_read stdin", __wasi_fd_read(0, &in, 1, &n));
	result("fd_filestat_get stdin", __wasi_fd_filestat_get(0, &st));
	result("sock_shutdown stdin", __wasi_sock_shutdown(0, 3));
	result("memory.grow", __builtin_wasm_memory_grow(0, 64) == (size_t)-1);
	return 0;
}
