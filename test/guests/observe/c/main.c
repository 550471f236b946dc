/* Makes what its twins in Go and Rust make as well: two spans, a log in each place
 * there is for one, and a metric. */
#include <stdio.h>
#include <stdlib.h>

#include "observe.h"

int main(void)
{
	const char *parent = getenv("TRACEPARENT");

	observe_log(OBSERVE_WARN, "before");
	observe_span_enter("work");
	observe_span_tags("lang:c,kind:test");
	observe_span_enter("step");
	observe_log(OBSERVE_INFO, "half way");
	observe_metric("guest.items:3|c|#lang:c");
	observe_span_exit();
	observe_span_exit();
	printf("observed %s\n", parent ? parent : "");
	return 0;
}
