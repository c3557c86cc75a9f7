//! Host and container metrics from `/proc` and cgroup files. Reads only.
