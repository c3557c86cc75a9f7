//! Commands: acceptance, delivery, results.

use fairlead_planted::{self as planted, Defect};
use fairlead_protocol::{
    Command, CommandId, CommandResult, HostId, Message, SignedCommand, Stamp, State,
};
use rusqlite::{OptionalExtension, Row, named_params};

use crate::{StoreError, Tx};

/// A command as it is kept.
#[derive(Debug, Clone)]
pub struct CommandRow {
    /// Its id.
    pub id: CommandId,
    /// Its tenant.
    pub tenant: String,
    /// Its host.
    pub host: HostId,
    /// The host's region.
    pub region: String,
    /// Kind, as in `command::Kind::name`.
    pub kind: String,
    /// Container, image or object.
    pub target: String,
    /// Who asked.
    pub issuer: String,
    /// With which API token.
    pub token_id: String,
    /// The encoded `SignedCommand`.
    pub signed: Vec<u8>,
    /// Tells a repeated request from another with the same id.
    pub request_hash: Vec<u8>,
    /// Where it stands.
    pub state: State,
    /// Stable error code.
    pub code: String,
    /// For the operator.
    pub message: String,
    /// Exit code, where there is one.
    pub exit_code: Option<i32>,
    /// The container acted upon or made.
    pub container_id: String,
    /// What it gave.
    pub body: Vec<u8>,
    /// Whether that was cut.
    pub body_truncated: bool,
    /// Its way so far.
    pub stamps: Vec<Stamp>,
    /// When issued.
    pub issued_us: i64,
    /// Not begun after this.
    pub not_after_us: i64,
    /// When it got its final state; 0: open.
    pub finished_us: i64,
    /// Order of acceptance here.
    pub place: i64,
    /// Who withdrew it; empty: nobody.
    pub cancel_by: String,
}

impl CommandRow {
    /// A command that was just taken in; `None` when it is not one. What only one side knows of it
    /// (token, request, place) is empty.
    #[must_use]
    pub fn taken_in(
        command: &Command,
        signed: &SignedCommand,
        region: &str,
        stamp: Stamp,
    ) -> Option<Self> {
        let kind = command.kind.as_ref()?;
        Some(Self {
            id: CommandId::from_wire(&command.id).ok()?,
            tenant: command.tenant.clone(),
            host: HostId::from_wire(&command.host).ok()?,
            region: region.to_owned(),
            kind: kind.name().to_owned(),
            target: kind.target().to_owned(),
            issuer: command.issuer.clone(),
            token_id: String::new(),
            signed: signed.encode_to_vec(),
            request_hash: Vec::new(),
            state: State::Queued,
            code: String::new(),
            message: String::new(),
            exit_code: None,
            container_id: String::new(),
            body: Vec::new(),
            body_truncated: false,
            stamps: vec![stamp],
            issued_us: command.issued_at_us,
            not_after_us: command.not_after_us,
            finished_us: 0,
            place: 0,
            cancel_by: String::new(),
        })
    }
}

/// What time may end of a command without a final state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenCommand {
    /// Its id.
    pub id: CommandId,
    /// Its host.
    pub host: HostId,
    /// Kind, as in `command::Kind::name`.
    pub kind: String,
    /// Where it stands.
    pub state: State,
    /// Not begun after this.
    pub not_after_us: i64,
    /// Who withdrew it; empty: nobody.
    pub cancel_by: String,
}

/// Which commands to list.
#[derive(Debug, Clone, Default)]
pub struct CommandFilter {
    /// Only of this tenant.
    pub tenant: String,
    /// Only of this host.
    pub host: Option<HostId>,
    /// Only in this state. Of one that is not final: all that have none, for where an open command is just now
    /// is not kept.
    pub state: Option<State>,
    /// Only with this target.
    pub target: Option<String>,
    /// Only older than this place.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

const COLUMNS: &str = "id, tenant, host, region, kind, target, issuer, token_id, signed, \
     request_hash, state, code, message, exit_code, container_id, body, body_truncated, stamps, \
     issued_us, not_after_us, finished_us, place, cancel_by";

// A condition such as `?1 IS NULL OR host = ?1` looks at each command that is kept, of all hosts: what is not
// asked for is not in the statement. Finished commands are many, so the order of open ones is made (`+place`),
// not read from the index of all. `plans` in the tests holds both.

pub(crate) fn listing(of_host: bool, open: bool) -> String {
    let host = if of_host {
        "host = :host"
    } else {
        ":host IS NULL"
    };
    let (is_open, place) = match (open, of_host) {
        (true, true) => ("finished_us = 0", "place"),
        (true, false) => ("finished_us = 0", "+place"),
        (false, _) => ("TRUE", "place"),
    };
    format!(
        "SELECT {COLUMNS} FROM commands WHERE tenant = :tenant AND {host} AND {is_open} \
         AND (:state IS NULL OR state = :state) AND (:target IS NULL OR target = :target) \
         AND {place} < coalesce(:before, {}) ORDER BY {place} DESC LIMIT :limit",
        i64::MAX
    )
}

pub(crate) fn open_of_host() -> String {
    format!("SELECT {COLUMNS} FROM commands WHERE finished_us = 0 AND host = ?1 ORDER BY place")
}

pub(crate) const ANY_OPEN_OF_HOST: &str =
    "SELECT 1 FROM commands WHERE finished_us = 0 AND host = ?1 LIMIT 1";

pub(crate) const OPEN_IN_BRIEF: &str = "SELECT id, host, state, not_after_us, cancel_by, kind FROM commands \
    WHERE finished_us = 0 ORDER BY +place";

fn blob16(row: &Row<'_>, index: usize) -> rusqlite::Result<[u8; 16]> {
    row.get(index)
}

fn command_row(row: &Row<'_>) -> rusqlite::Result<CommandRow> {
    let state: String = row.get(10)?;
    let stamps: Vec<u8> = row.get(17)?;
    Ok(CommandRow {
        id: CommandId::from_bytes(blob16(row, 0)?),
        tenant: row.get(1)?,
        host: HostId::from_bytes(blob16(row, 2)?),
        region: row.get(3)?,
        kind: row.get(4)?,
        target: row.get(5)?,
        issuer: row.get(6)?,
        token_id: row.get(7)?,
        signed: row.get(8)?,
        request_hash: row.get(9)?,
        state: State::from_name(&state).unwrap_or(State::Unspecified),
        code: row.get(11)?,
        message: row.get(12)?,
        exit_code: row.get(13)?,
        container_id: row.get(14)?,
        body: row.get(15)?,
        body_truncated: row.get(16)?,
        stamps: CommandResult::decode(&stamps[..])
            .map(|r| r.stamps)
            .unwrap_or_default(),
        issued_us: row.get(18)?,
        not_after_us: row.get(19)?,
        finished_us: row.get(20)?,
        place: row.get(21)?,
        cancel_by: row.get(22)?,
    })
}

fn encode_stamps(stamps: &[Stamp]) -> Vec<u8> {
    CommandResult {
        stamps: stamps.to_vec(),
        ..CommandResult::default()
    }
    .encode_to_vec()
}

impl Tx<'_> {
    /// Takes a command in and gives it its place. `false` when its id is there already (then
    /// nothing was changed); `place` of the row given is ignored.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn insert_command(&self, row: &CommandRow) -> Result<bool, StoreError> {
        let changed = self
            .sql
            .prepare_cached(
                "INSERT INTO commands (id, tenant, host, region, kind, target, issuer, token_id, \
                 signed, request_hash, state, stamps, issued_us, not_after_us, place) \
                 SELECT :id, :tenant, :host, :region, :kind, :target, :issuer, :token_id, :signed, \
                 :request_hash, :state, :stamps, :issued_us, :not_after_us, \
                 (SELECT coalesce(max(place), 0) + 1 FROM commands) \
                 WHERE true ON CONFLICT (id) DO NOTHING",
            )?
            .execute(named_params! {
                ":id": row.id.as_bytes(), ":tenant": row.tenant, ":host": row.host.as_bytes(),
                ":region": row.region, ":kind": row.kind, ":target": row.target,
                ":issuer": row.issuer, ":token_id": row.token_id, ":signed": row.signed,
                ":request_hash": row.request_hash, ":state": row.state.name(),
                ":stamps": encode_stamps(&row.stamps), ":issued_us": row.issued_us,
                ":not_after_us": row.not_after_us,
            })?;
        Ok(changed == 1)
    }

    /// The command of that id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn command(&self, id: CommandId) -> Result<Option<CommandRow>, StoreError> {
        Ok(self
            .sql
            .prepare_cached(&format!("SELECT {COLUMNS} FROM commands WHERE id = ?1"))?
            .query_row([id.as_bytes()], command_row)
            .optional()?)
    }

    /// The ids of a tenant's newest commands, for resolving a prefix that a person typed.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn command_ids(&self, tenant: &str, limit: u32) -> Result<Vec<CommandId>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT id FROM commands WHERE tenant = ?1 ORDER BY place DESC LIMIT ?2",
        )?;
        let rows = statement.query_map((tenant, limit), |row| {
            blob16(row, 0).map(CommandId::from_bytes)
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Commands, newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn commands(&self, filter: &CommandFilter) -> Result<Vec<CommandRow>, StoreError> {
        let open = filter.state.is_some_and(|state| !state.is_final());
        let text = listing(filter.host.is_some(), open);
        let mut statement = self.sql.prepare_cached(&text)?;
        let rows = statement.query_map(
            named_params! {
                ":tenant": filter.tenant,
                ":host": filter.host.as_ref().map(|h| h.as_bytes().as_slice()),
                ":state": filter.state.filter(|state| state.is_final()).map(State::name),
                ":target": filter.target, ":before": filter.before, ":limit": filter.limit,
            },
            command_row,
        )?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A host's commands without a final state, in order of acceptance. Asked at each connection.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open_commands(&self, host: HostId) -> Result<Vec<CommandRow>, StoreError> {
        let mut statement = self.sql.prepare_cached(&open_of_host())?;
        let rows = statement.query_map([host.as_bytes()], command_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether there are any.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn has_open_commands(&self, host: HostId) -> Result<bool, StoreError> {
        let mut statement = self.sql.prepare_cached(ANY_OPEN_OF_HOST)?;
        Ok(statement.exists([host.as_bytes()])?)
    }

    /// The same of all hosts, without what they carry.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open_commands_in_brief(&self) -> Result<Vec<OpenCommand>, StoreError> {
        let mut statement = self.sql.prepare_cached(OPEN_IN_BRIEF)?;
        let rows = statement.query_map([], |row| {
            let state: String = row.get(2)?;
            Ok(OpenCommand {
                id: CommandId::from_bytes(blob16(row, 0)?),
                host: HostId::from_bytes(blob16(row, 1)?),
                state: State::from_name(&state).unwrap_or(State::Unspecified),
                not_after_us: row.get(3)?,
                cancel_by: row.get(4)?,
                kind: row.get(5)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How many of a tenant's commands have no final state.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn count_open_commands(&self, tenant: &str) -> Result<u64, StoreError> {
        Ok(self.sql.query_row(
            "SELECT count(*) FROM commands WHERE finished_us = 0 AND tenant = ?1",
            [tenant],
            |row| row.get(0),
        )?)
    }

    /// Records the final state, once: `false` when the command has one already or is not known.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn finish_command(
        &self,
        id: CommandId,
        result: &CommandResult,
        finished_us: i64,
    ) -> Result<bool, StoreError> {
        if planted::is(Defect::TwoResults) {
            let again = "UPDATE commands SET finished_us = 0 WHERE id = ?1";
            self.sql.execute(again, [id.as_bytes()])?;
        }
        let state = State::try_from(result.state).unwrap_or(State::Unknown);
        let has_exit_code = state == State::Succeeded || result.exit_code != 0;
        let changed = self
            .sql
            .prepare_cached(
                "UPDATE commands SET state = :state, code = :code, message = :message, \
                 exit_code = :exit_code, container_id = :container_id, body = :body, \
                 body_truncated = :body_truncated, stamps = :stamps, finished_us = :finished_us \
                 WHERE id = :id AND finished_us = 0",
            )?
            .execute(named_params! {
                ":id": id.as_bytes(), ":state": state.name(), ":code": result.code,
                ":message": result.message,
                ":exit_code": has_exit_code.then_some(result.exit_code),
                ":container_id": result.container_id, ":body": &result.body[..],
                ":body_truncated": result.body_truncated,
                ":stamps": encode_stamps(&result.stamps), ":finished_us": finished_us,
            })?;
        Ok(changed == 1)
    }

    /// The command is on its way to its agent (or may be): from here only the agent knows its end.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn command_sent(&self, id: CommandId) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "UPDATE commands SET state = 'delivered' WHERE id = ?1 AND state = 'queued'",
            )?
            .execute([id.as_bytes()])?;
        Ok(())
    }

    /// Notes who withdraws a command; `false` when it has a final state already or is not known.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn withdraw_command(&self, id: CommandId, by: &str) -> Result<bool, StoreError> {
        Ok(self.sql.execute(
            "UPDATE commands SET cancel_by = ?2 WHERE id = ?1 AND finished_us = 0",
            (id.as_bytes(), by),
        )? == 1)
    }

    /// Forgets finished commands whose deadline lies before `before_us`; returns how many.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn forget_commands(&self, before_us: i64, limit: u32) -> Result<usize, StoreError> {
        Ok(self.sql.execute(
            "DELETE FROM commands WHERE id IN (SELECT id FROM commands WHERE finished_us > 0 \
             AND finished_us < ?1 AND not_after_us < ?1 LIMIT ?2)",
            (before_us, limit),
        )?)
    }
}
