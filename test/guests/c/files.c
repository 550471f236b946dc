/* What a C program does with files, through wasi-libc: writes one, reads it
   back, appends, renames, lists the directory, removes. Prints each step. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void check(int ok, const char *what) {
	if (ok)
		return;
	printf("%s: %s\n", what, strerror(errno));
	exit(1);
}

int main(int argc, char **argv) {
	char path[256], other[256], line[64];
	const char *dir = argc > 1 ? argv[1] : "/tmp";
	snprintf(path, sizeof path, "%s/one", dir);
	snprintf(other, sizeof other, "%s/two", dir);

	FILE *f = fopen(path, "w");
	check(f != NULL, "open to write");
	fputs("first\n", f);
	check(fclose(f) == 0, "close");
	f = fopen(path, "a");
	check(f != NULL, "open to append");
	fputs("second\n", f);
	fclose(f);
	check(rename(path, other) == 0, "rename");
	f = fopen(other, "r");
	check(f != NULL, "open to read");
	while (fgets(line, sizeof line, f))
		printf("read: %s", line);
	fclose(f);
	struct stat st;
	check(stat(other, &st) == 0, "stat");
	printf("size: %lld\n", (long long)st.st_size);
	DIR *d = opendir(dir);
	check(d != NULL, "opendir");
	for (struct dirent *e; (e = readdir(d));)
		if (e->d_name[0] != '.')
			printf("entry: %s\n", e->d_name);
	closedir(d);
	check(unlink(other) == 0, "unlink");
	check(time(NULL) > 1700000000, "clock");
	return 3;
}
