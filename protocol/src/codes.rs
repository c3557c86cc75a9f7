//! Stable error codes: the part of an error that programs may rely on. Texts may change, codes not.
//!
//! A code is `snake_case` and says what is wrong, not where it was noticed. `docs/guide/errors.md`
//! lists each with what to do next.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*
        /// The code of that text; `internal` for what is none.
        #[must_use]
        pub fn known(text: &str) -> &'static str {
            ALL.iter().find(|code| **code == text).copied().unwrap_or("internal")
        }
        /// Every code, for documentation and tests.
        pub const ALL: &[&str] = &[$($text),*];
    };
}

codes! {
    // Identity and admission.
    /// The join token is not known here (mistyped, or of another installation).
    TOKEN_UNKNOWN = "token_unknown";
    /// The join token's time is over.
    TOKEN_EXPIRED = "token_expired";
    /// The join token has been used as often as it may be.
    TOKEN_USED_UP = "token_used_up";
    /// The join token was revoked.
    TOKEN_REVOKED = "token_revoked";
    /// The join token is for another region or for another kind of machine.
    TOKEN_FOREIGN = "token_foreign";
    /// The text is not a token of the kind that is needed here.
    TOKEN_MALFORMED = "token_malformed";
    /// The server's CA is not the one that the token names.
    CA_MISMATCH = "ca_mismatch";
    /// The certificate does not say what it must say.
    CERTIFICATE_REJECTED = "certificate_rejected";
    /// The certificate has expired; only the renew door is open.
    CERTIFICATE_EXPIRED = "certificate_expired";
    /// The host (or its certificate) was revoked.
    REVOKED = "revoked";
    /// Another live machine uses this host's identity.
    CLONE = "clone";
    /// The host's certificate counter or epoch went backwards; an admin must approve it.
    HELD = "held";
    /// No protocol version in common.
    VERSION_MISMATCH = "version_mismatch";
    /// A message that is not allowed here or cannot be decoded.
    PROTOCOL_VIOLATION = "protocol_violation";
    /// Too many at once; come back later.
    BUSY = "busy";
    /// The proxy wants a user and password, or other ones.
    PROXY_AUTH = "proxy_auth";
    /// The proxy is not there, does not answer, or is none.
    PROXY_UNREACHABLE = "proxy_unreachable";
    /// The proxy does not connect to that address.
    PROXY_REFUSED = "proxy_refused";

    // The API.
    /// No or an invalid API token.
    UNAUTHENTICATED = "unauthenticated";
    /// The token is good but may not do this.
    PERMISSION_DENIED = "permission_denied";
    /// The request does not make sense as it is.
    INVALID_REQUEST = "invalid_request";
    /// There is no such host.
    HOST_NOT_FOUND = "host_not_found";
    /// There is no such container.
    CONTAINER_NOT_FOUND = "container_not_found";
    /// There is no such command.
    COMMAND_NOT_FOUND = "command_not_found";
    /// There is no such region.
    REGION_NOT_FOUND = "region_not_found";
    /// There is no such token.
    TOKEN_NOT_FOUND = "token_not_found";
    /// There is no such path in the API.
    NOT_FOUND = "not_found";
    /// The name or id prefix means several things.
    AMBIGUOUS = "ambiguous";
    /// Something of that name is there already.
    ALREADY_EXISTS = "already_exists";
    /// The id was used for another command.
    DUPLICATE_ID = "duplicate_id";
    /// The command, encoded, is larger than a link may carry.
    COMMAND_TOO_LARGE = "command_too_large";
    /// The first admin exists already, or the setup secret is wrong or too old.
    SETUP_CLOSED = "setup_closed";
    /// The command has no stream, or its stream is over.
    NO_STREAM = "no_stream";
    /// There is no such terminal, or it has ended.
    TERMINAL_NOT_FOUND = "terminal_not_found";
    /// The ticket opens no terminal: used, too old, altered, or of another page.
    TICKET_REFUSED = "ticket_refused";
    /// The host (or its region) is not connected.
    HOST_OFFLINE = "host_offline";
    /// This server has no package of that name.
    PACKAGE_NOT_FOUND = "package_not_found";
    /// The package is not signed by a key that is trusted, or is not what was asked for.
    PACKAGE_REFUSED = "package_refused";
    /// The package could not be fetched in time.
    PACKAGE_UNAVAILABLE = "package_unavailable";
    /// The region is not connected.
    REGION_OFFLINE = "region_offline";
    /// The disk is full or cannot be written; nothing was accepted.
    STORAGE_UNAVAILABLE = "storage_unavailable";
    /// Another process works with the same data directory.
    ALREADY_RUNNING = "already_running";
    /// The data directory does not hold the installation that is expected there.
    INSTALLATION_MISSING = "installation_missing";
    /// A defect of ours.
    INTERNAL = "internal";

    // The https certificate.
    /// The ACME CA has not issued a certificate yet.
    ACME_WAITING = "acme_waiting";
    /// The ACME CA was not reached, or has trouble of its own.
    ACME_UNREACHABLE = "acme_unreachable";
    /// The ACME CA refuses account, name or request.
    ACME_REFUSED = "acme_refused";
    /// The ACME CA could not see that the name is ours.
    ACME_CHALLENGE_FAILED = "acme_challenge_failed";
    /// Too much was asked of the ACME CA.
    ACME_RATE_LIMITED = "acme_rate_limited";
    /// The data directory does not take what has to be kept before the ACME CA is asked.
    ACME_NOT_KEPT = "acme_not_kept";
    /// Nobody has agreed to the ACME CA's terms of service.
    ACME_TERMS = "acme_terms";
    /// The public address has no name that an ACME CA could certify.
    ACME_NAME = "acme_name";

    // Commands.
    /// Signature, signer or addressee of the command are not as they must be.
    SIGNATURE_REJECTED = "signature_rejected";
    /// The clocks of two sides are so far apart that neither time can be believed.
    CLOCK_SKEW = "clock_skew";
    /// The deadline passed before the command began.
    DEADLINE_PASSED = "deadline_passed";
    /// The act took longer than its timeout.
    TIMEOUT = "timeout";
    /// Withdrawn before it began.
    WITHDRAWN = "withdrawn";
    /// The precondition does not hold.
    PRECONDITION_FAILED = "precondition_failed";
    /// The host owner's policy forbids it.
    FORBIDDEN_BY_HOST = "forbidden_by_host";
    /// The agent lacks a feature that the command needs.
    UNSUPPORTED = "unsupported";
    /// The agent's queues are full.
    HOST_BUSY = "host_busy";
    /// The engine does not answer.
    ENGINE_UNAVAILABLE = "engine_unavailable";
    /// The engine refused or failed.
    ENGINE_ERROR = "engine_error";
    /// There is no such image and it could not be pulled.
    IMAGE_NOT_FOUND = "image_not_found";
    /// The container's name is taken.
    NAME_IN_USE = "name_in_use";
    /// The container is not running.
    NOT_RUNNING = "not_running";
    /// Nobody attached to the command's stream in time.
    STREAM_NOT_ATTACHED = "stream_not_attached";
    /// The stream ended before the transfer was whole.
    STREAM_LOST = "stream_lost";
    /// What arrived is not what was signed.
    DIGEST_MISMATCH = "digest_mismatch";
    /// The container has no shell that a terminal could run.
    NO_SHELL = "no_shell";
    /// The remote process ended with a code other than zero.
    EXIT_CODE = "exit_code";
    /// It cannot be found out what became of it.
    OUTCOME_UNKNOWN = "outcome_unknown";
    /// The host's journal cannot be written; nothing was begun.
    JOURNAL_UNAVAILABLE = "journal_unavailable";
    /// The agent cannot take itself off its host.
    CANNOT_UNINSTALL = "cannot_uninstall";
    /// The host cannot be upgraded from the centre.
    CANNOT_UPGRADE = "cannot_upgrade";
    /// The new version did not get the host, or gave it back.
    UPGRADE_RETURNED = "upgrade_returned";
    /// What is installed came as a package of the system, which alone removes it.
    INSTALLER_PACKAGED = "installer_packaged";
    /// No version of the agent can be kept running on the host: it looks, but changes nothing.
    SAFE_MODE = "safe_mode";
}

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let mut seen = std::collections::BTreeSet::new();
        for code in ALL {
            assert!(seen.insert(code), "{code} is there twice");
            assert!(
                code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{code}"
            );
        }
    }
}
