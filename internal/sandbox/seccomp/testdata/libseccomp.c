/* Has libseccomp make a filter, for a test to compare ours with. Reads lines of
   numbers:

     D action architecture                            the default, first
     R action name [argument operator value value]... a rule
     N name                                           prints a number, for tables

   and writes the program to the standard output. What libseccomp refuses is
   named on the standard error stream, and the status is 1. */
#include <inttypes.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>

int main(void) {
	scmp_filter_ctx ctx = NULL;
	char line[4096];
	uint32_t arch = 0;
	int tables = 0;
	while (fgets(line, sizeof line, stdin)) {
		uint32_t action;
		int used, rc = 0;
		char name[64];
		if (sscanf(line, "D %" SCNu32 " %" SCNu32, &action, &arch) == 2) {
			ctx = seccomp_init(action);
			rc = ctx ? 0 : -1;
			if (rc == 0 && arch != seccomp_arch_native() && (rc = seccomp_arch_add(ctx, arch)) == 0)
				rc = seccomp_arch_remove(ctx, seccomp_arch_native());
		} else if (sscanf(line, "N %63s", name) == 1) {
			tables = 1;
			printf("%d\n", seccomp_syscall_resolve_name_arch(arch, name));
		} else if (sscanf(line, "R %" SCNu32 " %63s%n", &action, name, &used) == 2) {
			struct scmp_arg_cmp args[6];
			unsigned n = 0, arg, op;
			uint64_t a, b;
			for (char *p = line + used; n < 6 && sscanf(p, " %u %u %" SCNu64 " %" SCNu64 "%n", &arg, &op, &a, &b, &used) == 4; p += used)
				args[n++] = (struct scmp_arg_cmp){arg, op, a, b};
			/* By the machine's own number, or what stands for a call that it has not. */
			rc = seccomp_rule_add_array(ctx, action, seccomp_syscall_resolve_name(name), n, args);
		}
		if (rc != 0) {
			fprintf(stderr, "%s: %s", strerror(-rc), line);
			return 1;
		}
	}
	return tables ? 0 : seccomp_export_bpf(ctx, 1) != 0;
}
