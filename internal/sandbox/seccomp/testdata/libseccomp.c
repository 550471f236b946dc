/* Has libseccomp make a filter, for a test to compare ours with. Reads lines of
   numbers:

     D action                                          the default, first
     A token                                           one more architecture
     R action number [argument operator value value]... a rule

   and writes the program to the standard output. What libseccomp refuses is
   named on the standard error stream, and the status is 1. */
#include <inttypes.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>

int main(void) {
	scmp_filter_ctx ctx = NULL;
	char line[4096];
	while (fgets(line, sizeof line, stdin)) {
		uint32_t action;
		int number, used, rc = 0;
		if (sscanf(line, "D %" SCNu32, &action) == 1) {
			ctx = seccomp_init(action);
			rc = ctx ? 0 : -1;
		} else if (sscanf(line, "A %" SCNu32, &action) == 1) {
			rc = seccomp_arch_add(ctx, action);
		} else if (sscanf(line, "R %" SCNu32 " %d%n", &action, &number, &used) == 2) {
			struct scmp_arg_cmp args[6];
			unsigned n = 0, arg, op;
			uint64_t a, b;
			for (char *p = line + used; n < 6 && sscanf(p, " %u %u %" SCNu64 " %" SCNu64 "%n", &arg, &op, &a, &b, &used) == 4; p += used)
				args[n++] = (struct scmp_arg_cmp){arg, op, a, b};
			rc = seccomp_rule_add_array(ctx, action, number, n, args);
		}
		if (rc != 0) {
			fprintf(stderr, "%s: %s", strerror(-rc), line);
			return 1;
		}
	}
	return seccomp_export_bpf(ctx, 1) != 0;
}
