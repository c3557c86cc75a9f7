//! Every flag of `docker run` and `docker create`: taken with Docker's meaning, or refused by name
//! with a reason. A test compares this table with Docker's own list.

/// What follows a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Nothing, or `=true`, `=false`.
    Switch,
    /// One value; the last one counts.
    One,
    /// One value, each time the flag is given.
    Many,
}

/// One flag.
#[derive(Debug)]
pub(crate) struct Flag {
    /// `--long`
    pub(crate) long: &'static str,
    /// `-s`
    pub(crate) short: Option<char>,
    /// What follows.
    pub(crate) shape: Shape,
    /// Help; for a refused flag: why.
    pub(crate) text: &'static str,
    /// Whether it is refused.
    pub(crate) refused: bool,
    /// Docker's older names for it.
    pub(crate) aliases: &'static [&'static str],
}

const fn flag(long: &'static str, short: Option<char>, shape: Shape, text: &'static str) -> Flag {
    Flag {
        long,
        short,
        shape,
        text,
        refused: false,
        aliases: &[],
    }
}

const fn switch(long: &'static str, text: &'static str) -> Flag {
    flag(long, None, Shape::Switch, text)
}

const fn one(long: &'static str, text: &'static str) -> Flag {
    flag(long, None, Shape::One, text)
}

const fn many(long: &'static str, text: &'static str) -> Flag {
    flag(long, None, Shape::Many, text)
}

const fn short(short: char, mut flag: Flag) -> Flag {
    flag.short = Some(short);
    flag
}

const fn also(aliases: &'static [&'static str], mut flag: Flag) -> Flag {
    flag.aliases = aliases;
    flag
}

const fn refused(mut flag: Flag) -> Flag {
    flag.refused = true;
    flag
}

const NO_THROTTLE: &str = "I/O limits are not passed on to the engine";
const NO_CPU_TIME: &str = "say it with --cpus";
const WINDOWS: &str = "it is for Windows containers";
const DETACHED: &str = "containers run detached; follow the output with `fairlead logs -f`";

/// The table, in Docker's order.
pub(crate) const FLAGS: &[Flag] = &[
    many("add-host", "Line for /etc/hosts, NAME:ADDRESS"),
    refused(many(
        "annotation",
        "annotations are not passed on; use --label",
    )),
    refused(short('a', many("attach", DETACHED))),
    refused(one("blkio-weight", NO_THROTTLE)),
    refused(many("blkio-weight-device", NO_THROTTLE)),
    many("cap-add", "Add a Linux capability"),
    many("cap-drop", "Drop a Linux capability"),
    one("cgroup-parent", "Parent cgroup"),
    refused(one(
        "cgroupns",
        "the engine's default cgroup namespace is used",
    )),
    one("cidfile", "Write the container's id to this new file, here"),
    refused(one("cpu-count", WINDOWS)),
    refused(one("cpu-percent", WINDOWS)),
    refused(one("cpu-period", NO_CPU_TIME)),
    refused(one("cpu-quota", NO_CPU_TIME)),
    refused(one(
        "cpu-rt-period",
        "real-time scheduling is not passed on",
    )),
    refused(one(
        "cpu-rt-runtime",
        "real-time scheduling is not passed on",
    )),
    short('c', one("cpu-shares", "Relative weight")),
    one("cpus", "Number of processors, for instance 1.5"),
    one("cpuset-cpus", "Processors it may use (0-3, 0,1)"),
    refused(one(
        "cpuset-mems",
        "memory nodes are not passed on; --cpuset-cpus is",
    )),
    short(
        'd',
        switch("detach", "Docker's word; Fairlead always runs detached"),
    ),
    refused(one(
        "detach-keys",
        "there is nothing to detach from; see `fairlead shell`",
    )),
    many("device", "Device of the host, HOST[:CONTAINER[:rwm]]"),
    refused(many("device-cgroup-rule", "give each --device by name")),
    refused(many("device-read-bps", NO_THROTTLE)),
    refused(many("device-read-iops", NO_THROTTLE)),
    refused(many("device-write-bps", NO_THROTTLE)),
    refused(many("device-write-iops", NO_THROTTLE)),
    switch(
        "disable-content-trust",
        "Docker's default (true) is the only choice",
    ),
    many("dns", "Name server"),
    also(&["dns-opt"], many("dns-option", "Resolver option")),
    many("dns-search", "Search domain"),
    one("domainname", "Domain name inside"),
    one("entrypoint", "Replaces the image's entrypoint"),
    short('e', many("env", "KEY=VALUE; KEY alone takes it from here")),
    many("env-file", "File of variables, here"),
    many("expose", "Expose a port or a range"),
    refused(one(
        "gpus",
        "GPUs cannot be asked for; --device passes a device by name",
    )),
    many("group-add", "Additional group"),
    one("health-cmd", "Command that checks health"),
    one("health-interval", "Time between two checks"),
    one(
        "health-retries",
        "Failures in a row that count as unhealthy",
    ),
    refused(one(
        "health-start-interval",
        "say it with --health-interval",
    )),
    one("health-start-period", "Time in which failures do not count"),
    one("health-timeout", "Longest time of one check"),
    short('h', one("hostname", "Host name inside")),
    switch("init", "An init that forwards signals and reaps processes"),
    short(
        'i',
        switch(
            "interactive",
            "Keep standard input open (with -d, or create)",
        ),
    ),
    refused(one("io-maxbandwidth", WINDOWS)),
    refused(one("io-maxiops", WINDOWS)),
    one("ip", "IPv4 address in the network"),
    refused(one("ip6", "IPv6 addresses are not fixed; --ip is for IPv4")),
    one("ipc", "IPC mode"),
    refused(one("isolation", WINDOWS)),
    refused(one(
        "kernel-memory",
        "kernels no longer have it; use --memory",
    )),
    short('l', many("label", "Label, KEY[=VALUE]")),
    many("label-file", "File of labels, here"),
    refused(many(
        "link",
        "links are Docker's legacy; put both into one --network",
    )),
    refused(many("link-local-ip", "link-local addresses are not fixed")),
    one("log-driver", "Log driver"),
    many("log-opt", "Option of the log driver"),
    one("mac-address", "MAC address"),
    short('m', one("memory", "Memory limit")),
    one("memory-reservation", "Soft limit"),
    one(
        "memory-swap",
        "Memory and swap together; -1: unlimited swap",
    ),
    refused(one(
        "memory-swappiness",
        "cgroup v2 has no such thing; use --memory-swap",
    )),
    many(
        "mount",
        "Mount: type=bind|volume|tmpfs,source=…,target=…[,readonly]",
    ),
    one("name", "Name of the container"),
    also(&["net"], many("network", "Network")),
    also(&["net-alias"], many("network-alias", "Name in the network")),
    switch("no-healthcheck", "Switch the image's health check off"),
    switch("oom-kill-disable", "Never kill it for want of memory"),
    one("oom-score-adj", "-1000 to 1000"),
    one("pid", "PID namespace"),
    one("pids-limit", "Most processes; -1: unlimited"),
    one("platform", "os/arch[/variant]"),
    switch("privileged", "All capabilities and devices"),
    short(
        'p',
        many("publish", "[ADDRESS:][HOST-PORT:]PORT[/PROTO], ranges too"),
    ),
    short(
        'P',
        switch("publish-all", "Publish all exposed ports on free ones"),
    ),
    one("pull", "always, missing or never"),
    short(
        'q',
        switch("quiet", "Docker's word; no pull output is shown"),
    ),
    switch("read-only", "Read-only root file system"),
    one("restart", "no, always, unless-stopped, on-failure[:N]"),
    switch("rm", "Remove it when it ends"),
    one("runtime", "OCI runtime"),
    many("security-opt", "Security option"),
    one("shm-size", "Size of /dev/shm"),
    refused(switch("sig-proxy", DETACHED)),
    one("stop-signal", "Signal of stop"),
    one("stop-timeout", "Grace of stop, seconds"),
    refused(many("storage-opt", "storage options are not passed on")),
    many("sysctl", "Kernel parameter of its namespaces"),
    many("tmpfs", "PATH[:OPTIONS]"),
    short('t', switch("tty", "A terminal (with -d, or create)")),
    many("ulimit", "NAME=SOFT[:HARD]"),
    refused(switch(
        "use-api-socket",
        "the engine's socket would be the whole host",
    )),
    short('u', one("user", "USER[:GROUP]")),
    one("userns", "User namespace"),
    one("uts", "UTS namespace"),
    short(
        'v',
        many("volume", "[SOURCE:]PATH[:OPTIONS]; SOURCE is on the host"),
    ),
    refused(one(
        "volume-driver",
        "volume drivers are not passed on; make the volume first",
    )),
    refused(many("volumes-from", "name each volume with -v")),
    short('w', one("workdir", "Working directory")),
];
