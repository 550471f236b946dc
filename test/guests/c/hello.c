/* Says hello; with the argument "idle", stays. Built for Linux and for WASI. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
	if (argc > 1 && strcmp(argv[1], "idle") == 0) {
		for (;;)
			sleep(3600);
	}
	puts("hello");
	return 0;
}
