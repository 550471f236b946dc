/* Waits for the end of its standard input, if told so; takes that many MiB; and
   then does nothing for ever: memory [stdin] MIB. Small, so that it is compiled in
   no time even where that is slow. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
	if (argc > 1 && strcmp(argv[1], "stdin") == 0)
		while (getchar() != EOF)
			;
	size_t mib = strtoul(argv[argc - 1], NULL, 10);
	char *held = malloc((mib << 20) + 1);
	if (held == NULL) {
		puts("no memory");
		return 1;
	}
	memset(held, 1, mib << 20);
	printf("holding: %zu\n", mib);
	fflush(stdout);
	for (;;)
		sleep(3600 + (held[0] == 2)); /* it is needed still */
}
