//! From [`ContainerSpec`] to the engine's create request, field by field, with Docker's meaning.
//!
//! A field that cannot be said to this engine is an error that names it; none is dropped. The spec
//! is taken apart without `..`, so that a new field does not compile until it is dealt with here.

use bollard::models::{ContainerCreateBody, HostConfig};
use fairlead_protocol::ContainerSpec;

use super::transport::{ApiVersion, query_value};
use crate::runtime::RuntimeError;
use fields::{
    API_ENDPOINT_MAC, device_of, endpoint_of, entrypoint_of, health_of, log_of, map_of, mounts_of,
    one_of, ports_of, restart_of, security_of, some_list, some_map, some_number, some_text,
    some_true, tmpfs_of, ulimit_of, wrong,
};

mod fields;

/// From here on create takes a platform.
const API_PLATFORM: ApiVersion = ApiVersion::new(1, 41);

/// Path and body of the request.
pub(super) struct CreateRequest {
    pub(super) path_and_query: String,
    pub(super) body: serde_json::Value,
}

/// The request that makes this container.
///
/// # Errors
/// [`RuntimeError::Engine`] naming the field that cannot be mapped.
#[expect(
    clippy::too_many_lines,
    reason = "one entry for each field, taken apart in one place"
)]
pub(super) fn create_request(
    spec: &ContainerSpec,
    labels: &[(String, String)],
    version: ApiVersion,
) -> Result<CreateRequest, RuntimeError> {
    let ContainerSpec {
        name,
        image,
        command,
        entrypoint,
        entrypoint_set,
        env,
        labels: own_labels,
        ports,
        mounts,
        network,
        network_aliases,
        restart_policy,
        restart_max,
        memory_bytes,
        memory_reservation_bytes,
        memory_swap_bytes,
        nano_cpus,
        cpu_shares,
        cpuset_cpus,
        pids_limit,
        user,
        workdir,
        hostname,
        tty,
        stdin_open,
        read_only,
        init,
        privileged,
        cap_add,
        cap_drop,
        devices,
        security_opt,
        pid_mode,
        ipc_mode,
        uts_mode,
        userns_mode,
        tmpfs,
        sysctls,
        extra_hosts,
        dns,
        stop_signal,
        stop_timeout_s,
        auto_remove,
        health,
        log_driver,
        log_options,
        group_add,
        ulimits,
        shm_bytes,
        publish_all,
        platform,
        expose,
        pull,
        ip,
        mac_address,
        dns_search,
        dns_options,
        domainname,
        oom_score_adj,
        oom_kill_disable,
        cgroup_parent,
        runtime,
    } = spec;

    if image.is_empty() {
        return Err(wrong("image", "it is missing"));
    }
    // The executor pulls; here only that the word is one.
    one_of("pull", pull, &["", "missing", "always", "never"])?;
    if !workdir.is_empty() && !workdir.starts_with('/') {
        return Err(wrong("workdir", "it must be absolute"));
    }
    let (binds, other_mounts) = mounts_of(mounts)?;
    let (port_bindings, exposed_ports) = ports_of(ports, expose)?;
    let mut all_labels = map_of("labels", own_labels)?;
    all_labels.extend(labels.iter().cloned());

    let host_config = HostConfig {
        binds: some_list(binds),
        mounts: some_list(other_mounts),
        port_bindings: some_map(port_bindings),
        publish_all_ports: some_true(*publish_all),
        network_mode: some_text(network),
        restart_policy: restart_of(restart_policy, *restart_max)?,
        auto_remove: some_true(*auto_remove),
        memory: some_number(*memory_bytes),
        memory_reservation: some_number(*memory_reservation_bytes),
        memory_swap: some_number(*memory_swap_bytes),
        nano_cpus: some_number(*nano_cpus),
        cpu_shares: some_number(*cpu_shares),
        cpuset_cpus: some_text(cpuset_cpus),
        pids_limit: some_number(*pids_limit),
        readonly_rootfs: some_true(*read_only),
        init: some_true(*init),
        privileged: some_true(*privileged),
        cap_add: some_list(cap_add.clone()),
        cap_drop: some_list(cap_drop.clone()),
        devices: some_list(
            devices
                .iter()
                .map(|d| device_of(d))
                .collect::<Result<_, _>>()?,
        ),
        security_opt: some_list(security_of(security_opt)?),
        pid_mode: some_text(pid_mode),
        ipc_mode: some_text(ipc_mode),
        uts_mode: some_text(uts_mode),
        userns_mode: some_text(userns_mode),
        tmpfs: some_map(tmpfs_of(tmpfs)?),
        sysctls: some_map(map_of("sysctls", sysctls)?),
        extra_hosts: some_list(extra_hosts.clone()),
        dns: some_list(dns.clone()),
        dns_search: some_list(dns_search.clone()),
        dns_options: some_list(dns_options.clone()),
        log_config: log_of(log_driver, log_options)?,
        group_add: some_list(group_add.clone()),
        ulimits: some_list(
            ulimits
                .iter()
                .map(|u| ulimit_of(u))
                .collect::<Result<_, _>>()?,
        ),
        shm_size: some_number(*shm_bytes),
        oom_score_adj: some_number(i64::from(*oom_score_adj)),
        oom_kill_disable: some_true(*oom_kill_disable),
        cgroup_parent: some_text(cgroup_parent),
        runtime: some_text(runtime),
        ..HostConfig::default()
    };
    let body = ContainerCreateBody {
        image: Some(image.clone()),
        cmd: some_list(command.clone()),
        entrypoint: entrypoint_of(entrypoint, *entrypoint_set)?,
        env: some_list(env.clone()),
        labels: some_map(all_labels),
        exposed_ports: some_list(exposed_ports),
        user: some_text(user),
        working_dir: some_text(workdir),
        hostname: some_text(hostname),
        domainname: some_text(domainname),
        tty: some_true(*tty),
        open_stdin: some_true(*stdin_open),
        stop_signal: some_text(stop_signal),
        stop_timeout: some_number(i64::from(*stop_timeout_s)),
        healthcheck: health.as_ref().map(health_of).transpose()?,
        host_config: Some(host_config),
        networking_config: endpoint_of(network, network_aliases, ip, mac_address, version)?,
        ..ContainerCreateBody::default()
    };
    let mut body = serde_json::to_value(body).map_err(|e| RuntimeError::Engine(e.to_string()))?;
    if !mac_address.is_empty() && version < API_ENDPOINT_MAC {
        body["MacAddress"] = mac_address.as_str().into();
    }
    Ok(CreateRequest {
        path_and_query: path_of(name, platform, version)?,
        body,
    })
}

fn path_of(name: &str, platform: &str, version: ApiVersion) -> Result<String, RuntimeError> {
    let mut query = Vec::new();
    if !name.is_empty() {
        query.push(format!("name={}", query_value(name)));
    }
    if !platform.is_empty() {
        if version < API_PLATFORM {
            return Err(wrong("platform", "this engine is too old for it"));
        }
        query.push(format!("platform={}", query_value(platform)));
    }
    let separator = if query.is_empty() { "" } else { "?" };
    Ok(format!("/containers/create{separator}{}", query.join("&")))
}

#[cfg(test)]
mod tests;
