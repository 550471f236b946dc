/* Does what its arguments say, one after the other, up to the first that fails:
   "idle" waits for ever, "-" copies the standard input, "+FILE" writes a file,
   anything else is a file to copy to the standard output. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int failed(const char *name) {
	printf("%s: %s\n", name, strerror(errno));
	return 1;
}

int main(int argc, char **argv) {
	char buffer[4096];
	setvbuf(stdout, NULL, _IONBF, 0);
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "idle") == 0)
			for (;;)
				sleep(1000);
		if (argv[i][0] == '+') {
			int f = open(argv[i] + 1, O_CREAT | O_WRONLY, 0644);
			if (f < 0 || write(f, "written\n", 8) != 8)
				return failed(argv[i]);
			close(f);
			continue;
		}
		int f = strcmp(argv[i], "-") == 0 ? 0 : open(argv[i], O_RDONLY);
		if (f < 0)
			return failed(argv[i]);
		ssize_t n;
		while ((n = read(f, buffer, sizeof buffer)) > 0)
			fwrite(buffer, 1, n, stdout);
		if (n < 0)
			return failed(argv[i]);
		close(f);
	}
	return 0;
}
