// Work for a guest to do, timed by itself: the same source is a module and a
// Linux program. Each piece prints one line on the standard error,
//
//	NAME OPERATIONS NANOSECONDS SUM
//
// of which SUM depends on all that was done, and on nothing else: two programs
// that print the same have done the same.
//
//	work PIECE SIZE [DIR]
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void die(const char *what) {
	fprintf(stderr, "work: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void say(const char *name, uint64_t operations, uint64_t began, uint64_t sum) {
	fprintf(stderr, "%s %llu %llu %016llx\n", name, (unsigned long long)operations, (unsigned long long)(now() - began), (unsigned long long)sum);
}

// Xorshift: the same numbers everywhere.
static uint64_t seed = 88172645463325252u;

static uint64_t next(void) {
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

static uint64_t mix(uint64_t sum, uint64_t x) { return (sum ^ x) * 1099511628211u; }

static uint64_t mixbytes(uint64_t sum, const unsigned char *p, size_t n) {
	uint64_t x;
	for (size_t i = 0; i + sizeof x <= n; i += sizeof x) {
		memcpy(&x, p + i, sizeof x);
		sum = mix(sum, x);
	}
	return sum;
}

static void *get(size_t n) {
	void *p = malloc(n);
	if (!p) die("malloc");
	return p;
}

// Integers: SHA-256, size MiB of it.
static uint32_t k256[64];

static uint32_t fraction(double x) { return (uint32_t)((x - floor(x)) * 4294967296.0); }

static void block(uint32_t h[8], const unsigned char *p) {
	uint32_t w[64], s[8];
	for (int i = 0; i < 16; i++) w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
#define ROR(x, n) ((x) >> (n) | (x) << (32 - (n)))
	for (int i = 16; i < 64; i++) {
		uint32_t a = w[i - 15], b = w[i - 2];
		w[i] = w[i - 16] + (ROR(a, 7) ^ ROR(a, 18) ^ a >> 3) + w[i - 7] + (ROR(b, 17) ^ ROR(b, 19) ^ b >> 10);
	}
	memcpy(s, h, sizeof s);
	for (int i = 0; i < 64; i++) {
		uint32_t a = s[0], e = s[4];
		uint32_t t = s[7] + (ROR(e, 6) ^ ROR(e, 11) ^ ROR(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + k256[i] + w[i];
		uint32_t u = (ROR(a, 2) ^ ROR(a, 13) ^ ROR(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
		s[7] = s[6], s[6] = s[5], s[5] = e, s[4] = s[3] + t, s[3] = s[2], s[2] = s[1], s[1] = a, s[0] = t + u;
	}
	for (int i = 0; i < 8; i++) h[i] += s[i];
}

static void sha(uint64_t size) {
	static unsigned char buf[1 << 16];
	uint32_t h[8];
	for (int i = 0, n = 2; i < 64; n++) {
		int d = 2;
		while (d * d <= n && n % d) d++;
		if (d * d <= n) continue;
		k256[i] = fraction(cbrt(n));
		if (i < 8) h[i] = fraction(sqrt(n));
		i++;
	}
	for (size_t i = 0; i < sizeof buf; i++) buf[i] = (unsigned char)next();
	uint64_t began = now(), sum = 0;
	for (uint64_t n = 0; n < size << 20; n += sizeof buf)
		for (size_t i = 0; i < sizeof buf; i += 64) block(h, buf + i);
	for (int i = 0; i < 8; i++) sum = mix(sum, h[i]);
	say("sha256", size << 14, began, sum);
}

// Floating point: size thousand steps of five bodies. Only what IEEE 754 rounds
// exactly, so that the last bit is the same everywhere.
static void bodies(uint64_t size) {
	double p[5][3], v[5][3], m[5];
	for (int i = 0; i < 5; i++) {
		m[i] = 1 + (double)(next() % 1000) / 100;
		for (int k = 0; k < 3; k++) {
			p[i][k] = (double)(next() % 10000) / 10 + i * 1000;
			v[i][k] = (double)(next() % 1000) / 1000;
		}
	}
	uint64_t began = now(), sum = 0;
	for (uint64_t n = 0; n < size * 1000; n++) {
		for (int i = 0; i < 5; i++)
			for (int j = i + 1; j < 5; j++) {
				double d[3], r = 0.01;
				for (int k = 0; k < 3; k++) d[k] = p[i][k] - p[j][k], r += d[k] * d[k];
				r = 0.001 / (r * sqrt(r));
				for (int k = 0; k < 3; k++) v[i][k] -= d[k] * m[j] * r, v[j][k] += d[k] * m[i] * r;
			}
		for (int i = 0; i < 5; i++)
			for (int k = 0; k < 3; k++) p[i][k] += 0.001 * v[i][k];
	}
	sum = mixbytes(sum, (unsigned char *)p, sizeof p);
	say("nbody", size * 1000, began, mixbytes(sum, (unsigned char *)v, sizeof v));
}

// Memory: size MiB of numbers, sorted; then walked through in an order that no
// cache foresees.
static void quick(uint32_t *a, int64_t n) {
	while (n > 12) {
		uint32_t pivot = a[n / 2];
		int64_t i = 0, j = n - 1;
		while (i <= j) {
			while (a[i] < pivot) i++;
			while (a[j] > pivot) j--;
			if (i <= j) {
				uint32_t t = a[i];
				a[i++] = a[j], a[j--] = t;
			}
		}
		quick(a, j + 1);
		a += i, n -= i;
	}
	for (int64_t i = 1; i < n; i++) {
		uint32_t t = a[i];
		int64_t j = i;
		for (; j > 0 && a[j - 1] > t; j--) a[j] = a[j - 1];
		a[j] = t;
	}
}

static void memory(uint64_t size) {
	uint32_t n = (uint32_t)(size << 18), *a = get((size_t)n * 4);
	for (uint32_t i = 0; i < n; i++) a[i] = (uint32_t)next();
	uint64_t began = now(), sum = 0;
	quick(a, n);
	for (uint32_t i = 0; i < n; i++) sum = mix(sum, a[i]);
	say("sort", n, began, sum);
	for (uint32_t i = 0; i < n; i++) a[i] = i;
	for (uint32_t i = n - 1; i > 0; i--) { // one cycle of all: Sattolo
		uint32_t j = (uint32_t)(next() % i), t = a[i];
		a[i] = a[j], a[j] = t;
	}
	began = now(), sum = 0;
	uint32_t at = 0;
	for (uint32_t i = 0; i < 2 * n; i++) sum = mix(sum, at = a[at]);
	say("chase", 2 * n, began, sum);
	uint32_t *b = get((size_t)n * 4);
	memset(b, 1, (size_t)n * 4);
	began = now(), sum = 0;
	for (int i = 0; i < 128; i++) {
		memcpy(b, a, (size_t)n * 4);
		a[i] ^= b[(n - 1) ^ (uint32_t)i];
		sum = mix(sum, a[i]);
	}
	say("memcpy", size * 128, began, sum); // MiB
}

// A program that comes to need size MiB, 64 KiB at a time.
static void grow(uint64_t size) {
	static unsigned char *volatile last; // so that the compiler does not know what it is for
	uint64_t began = now(), sum = 0, n = 0;
	for (; n < size << 4; n++) {
		last = get(65520);
		for (int i = 0; i < 65520; i += 1024) last[i] = (unsigned char)n, sum = mix(sum, last[i]);
	}
	say("grow", n, began, sum);
}

// Indirect calls: size thousand rounds of a small machine.
typedef uint64_t (*op)(uint64_t, uint64_t);
static uint64_t o0(uint64_t x, uint64_t y) { return x + y; }
static uint64_t o1(uint64_t x, uint64_t y) { return x ^ y; }
static uint64_t o2(uint64_t x, uint64_t y) { return x * (y | 1); }
static uint64_t o3(uint64_t x, uint64_t y) { return x << (y & 31) | x >> 7; }
static uint64_t o4(uint64_t x, uint64_t y) { return x - y * 3; }
static uint64_t o5(uint64_t x, uint64_t y) { return ~x + y; }
static uint64_t o6(uint64_t x, uint64_t y) { return x & y ? x >> 1 : y; }
static uint64_t o7(uint64_t x, uint64_t y) { return (x >> 3) + (y << 5); }

static void calls(uint64_t size) {
	static op volatile ops[8] = {o0, o1, o2, o3, o4, o5, o6, o7};
	unsigned char program[1024];
	for (size_t i = 0; i < sizeof program; i++) program[i] = next() & 7;
	uint64_t began = now(), x = 1, y = 2;
	for (uint64_t n = 0; n < size; n++)
		for (int i = 0; i < 1000; i++) {
			uint64_t t = ops[program[i]](x, y);
			y = x, x = t;
		}
	say("indirect", size * 1000, began, mix(x, y));
}

// What is asked of the host and is no file: size thousand times.
static void host(uint64_t size) {
	uint64_t began = now(), n = 0, last = 0;
	for (uint64_t i = 0; i < size * 1000; i++) {
		uint64_t t = now();
		n += t >= last;
		last = t;
	}
	say("clock", size * 1000, began, n);
	unsigned char buf[32] = {0};
	began = now(), n = 0;
	for (uint64_t i = 0; i < size * 200; i++) n += getentropy(buf, sizeof buf) == 0;
	say("random", size * 200, began, n);
}

// Files: one of size MiB in dir, written, read, and read at places here and there,
// in pieces of each length.
static void file(uint64_t size, const char *dir) {
	static unsigned char data[1 << 16], buf[1 << 16];
	char path[256], name[32];
	snprintf(path, sizeof path, "%s/file", dir);
	for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)next();
	for (size_t piece = 4096; piece <= sizeof buf; piece *= 16) {
		uint64_t count = (size << 20) / piece, sum = 0;
		int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
		if (fd < 0) die(path);
		uint64_t began = now();
		for (uint64_t i = 0; i < 2 * count; i++) {
			if (i == count && lseek(fd, 0, SEEK_SET) != 0) die("lseek"); // from now on it is there
			memcpy(data, &i, sizeof i);
			if (write(fd, data, piece) != (ssize_t)piece) die("write");
			sum += piece;
		}
		snprintf(name, sizeof name, "write-%zuk", piece >> 10);
		say(name, 2 * count, began, sum);
		began = now(), sum = 0;
		for (uint64_t i = 0; i < 4 * count; i++) {
			if (i % count == 0 && lseek(fd, 0, SEEK_SET) != 0) die("lseek");
			if (read(fd, buf, piece) != (ssize_t)piece) die("read");
			sum = mixbytes(sum, buf, 64);
		}
		snprintf(name, sizeof name, "read-%zuk", piece >> 10);
		say(name, 4 * count, began, sum);
		began = now(), sum = 0;
		for (uint64_t i = 0; i < 4 * count; i++) {
			if (pread(fd, buf, piece, (off_t)(next() % count * piece)) != (ssize_t)piece) die("pread");
			sum = mixbytes(sum, buf, 64);
		}
		snprintf(name, sizeof name, "pread-%zuk", piece >> 10);
		say(name, 4 * count, began, sum);
		if (close(fd) || unlink(path)) die(path);
	}
}

// Many small files in dir, size of them.
static void files(uint64_t size, const char *dir) {
	char sub[256], path[300], buf[4096] = "";
	struct stat st;
	snprintf(sub, sizeof sub, "%s/many", dir);
	if (mkdir(sub, 0755)) die(sub);
#define EACH for (uint64_t i = 0; i < size; i++) if (snprintf(path, sizeof path, "%s/%llu", sub, (unsigned long long)i), 1)
	uint64_t began = now(), sum = 0;
	EACH {
		int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
		if (fd < 0) die(path);
		if (write(fd, buf, 100 + i % 900) < 0) die("write");
		if (close(fd)) die("close");
	}
	say("create", size, began, size);
	began = now();
	for (int n = 0; n < 5; n++) EACH {
		if (stat(path, &st)) die(path);
		sum = mix(sum, (uint64_t)st.st_size);
	}
	say("stat", 5 * size, began, sum);
	began = now(), sum = 0;
	for (int i = 0; i < 10; i++) {
		DIR *d = opendir(sub);
		if (!d) die(sub);
		for (struct dirent *e; (e = readdir(d));)
			if (e->d_name[0] != '.') sum += (uint64_t)atoll(e->d_name) + 1;
		closedir(d);
	}
	say("readdir", size * 10, began, sum);
	began = now(), sum = 0;
	EACH {
		int fd = open(path, O_RDONLY);
		if (fd < 0) die(path);
		for (ssize_t n; (n = read(fd, buf, sizeof buf)) != 0;) {
			if (n < 0) die("read");
			sum = mix(sum, (uint64_t)n);
		}
		if (close(fd)) die("close");
	}
	say("open-read", size, began, sum);
	began = now();
	EACH if (unlink(path)) die(path);
	say("unlink", size, began, size);
	if (rmdir(sub)) die(sub);
}

// The standard output: size MiB in pieces of 64 KiB, and a 64th of that in
// lines.
static void out(uint64_t size) {
	static char buf[1 << 16];
	for (size_t i = 0; i < sizeof buf; i++) buf[i] = i % 64 == 63 ? '\n' : (char)('a' + i % 23);
	uint64_t began = now(), sum = 0;
	for (uint64_t i = 0; i < size << 4; i++)
		for (size_t at = 0; at < sizeof buf;) {
			ssize_t n = write(1, buf + at, sizeof buf - at);
			if (n <= 0) die("write");
			at += (size_t)n, sum += (uint64_t)n;
		}
	say("stdout-64k", size << 4, began, sum);
	began = now(), sum = 0;
	for (uint64_t i = 0; i < size << 8; i++) {
		if (write(1, buf, 64) != 64) die("write");
		sum += 64;
	}
	say("stdout-64", size << 8, began, sum);
}

int main(int argc, char **argv) {
	if (argc < 3) return 2;
	const char *piece = argv[1], *dir = argc > 3 ? argv[3] : ".";
	uint64_t size = strtoull(argv[2], 0, 10);
	if (!strcmp(piece, "sha256")) sha(size);
	else if (!strcmp(piece, "nbody")) bodies(size);
	else if (!strcmp(piece, "memory")) memory(size);
	else if (!strcmp(piece, "grow")) grow(size);
	else if (!strcmp(piece, "indirect")) calls(size);
	else if (!strcmp(piece, "host")) host(size);
	else if (!strcmp(piece, "file")) file(size, dir);
	else if (!strcmp(piece, "files")) files(size, dir);
	else if (!strcmp(piece, "stdout")) out(size);
	else return 2;
	return 0;
}
