//! Makes what its twins in Go and C make as well: two spans, a log in each place there is
//! for one, and a metric.
use wazero_observe::{log, metric, span, tags, Level};

fn main() {
    log(Level::Warn, "before");
    {
        let _work = span("work");
        tags("lang:rust,kind:test");
        let _step = span("step");
        log(Level::Info, "half way");
        metric("guest.items:3|c|#lang:rust");
    }
    println!("observed {}", std::env::var("TRACEPARENT").unwrap_or_default());
}
