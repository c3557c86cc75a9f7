//! What a region says of the terminals that live at its access server: asked for on the uplink, reported at
//! their end, their recordings.

use std::sync::Arc;

use async_trait::async_trait;
use fairlead_api::input::plain;
use fairlead_identity::digest::sha256;
use fairlead_protocol::{
    CommandId, EndTerminal, Numbered, OpenTerminals, RecordingPart, RecordingTaken, TerminalAnswer,
    TerminalAsk, TerminalEnded, TerminalRefused, UplinkDown, codes, numbered, uplink_down,
};
use fairlead_store::audit::AuditEntry;
use fairlead_store::{StoreError, Tx};

use super::uplink::{Server, Uplink, UplinkEnd};

/// Who decides about terminals.
#[async_trait]
pub trait TerminalDesk: Send + Sync + 'static {
    /// A region is connected; terminals of its hosts are opened there, at that address, if it is not empty.
    fn attached(&self, region: &str, at: &str);
    /// It is cut off.
    fn detached(&self, region: &str);
    /// Whose pages may open terminals.
    fn origins(&self) -> Vec<String>;
    /// A region asks whether a ticket still holds, or to begin.
    async fn asked(&self, region: &str, ask: TerminalAsk) -> TerminalAnswer;
    /// What is open there; what is to end of that.
    fn told(&self, region: &str, open: OpenTerminals) -> Vec<EndTerminal>;
    /// One has ended there.
    fn ended(&self, region: &str, session: CommandId);
    /// A piece of a recording.
    async fn recording(&self, region: &str, part: RecordingPart) -> RecordingTaken;
}

impl Uplink {
    /// A region asks about a terminal; the order that a good answer stands for goes before it.
    pub(super) async fn on_terminal_ask(
        &mut self,
        socket: &mut Server,
        ask: TerminalAsk,
    ) -> Result<(), UplinkEnd> {
        let answer = self.centre.desk.asked(&self.region, ask).await;
        self.send_orders(socket).await?;
        let kind = uplink_down::Kind::TerminalAnswer(answer);
        socket.send(&UplinkDown { kind: Some(kind) }).await?;
        Ok(())
    }

    pub(super) async fn on_open_terminals(
        &self,
        socket: &mut Server,
        open: OpenTerminals,
    ) -> Result<(), UplinkEnd> {
        for end in self.centre.desk.told(&self.region, open) {
            let kind = uplink_down::Kind::EndTerminal(end);
            socket.send(&UplinkDown { kind: Some(kind) }).await?;
        }
        Ok(())
    }

    /// Pieces of recordings are written beside the uplink: looking a long one through takes longer than an uplink
    /// may be silent. A region sends one at a time.
    pub(super) async fn on_recording(
        &self,
        socket: &mut Server,
        part: RecordingPart,
    ) -> Result<(), UplinkEnd> {
        let Ok(place) = Arc::clone(&self.recording).try_acquire_owned() else {
            let busy = RecordingTaken {
                session: part.session,
                code: codes::BUSY.to_owned(),
                message: "one piece at a time".to_owned(),
                ..RecordingTaken::default()
            };
            let kind = uplink_down::Kind::RecordingTaken(busy);
            socket.send(&UplinkDown { kind: Some(kind) }).await?;
            return Ok(());
        };
        let (centre, region) = (Arc::clone(&self.centre), self.region.clone());
        // Ends when the piece is on the disk; one per uplink.
        tokio::spawn(async move {
            let taken = centre.desk.recording(&region, part).await;
            drop(place);
            let kind = uplink_down::Kind::RecordingTaken(taken);
            // A region that hears nothing asks again.
            centre.regions.send(&region, kind);
        });
        Ok(())
    }
}

fn entry(region: &str, action: &str, at_us: i64) -> AuditEntry {
    AuditEntry {
        at_us,
        actor: format!("region {region}"),
        action: action.to_owned(),
        outcome: "ok".to_owned(),
        ..AuditEntry::default()
    }
}

/// That a terminal has ended, for the audit log. Whose it was this store knows.
pub(super) fn ended(tx: &Tx<'_>, region: &str, said: &TerminalEnded) -> Result<(), StoreError> {
    let Ok(session) = CommandId::from_wire(&said.session) else {
        return Ok(());
    };
    let Some(row) = tx.command(session)?.filter(|row| row.region == region) else {
        tracing::error!(region, %session, "the end of a terminal that was not this region's");
        return Ok(());
    };
    let host = tx.host(row.host)?.map(|host| host.name);
    let entry = AuditEntry {
        tenant: row.tenant,
        actor: row.issuer,
        object: format!("{}/{}", host.unwrap_or_default(), row.target),
        source: format!("region {region}"),
        detail: format!(
            "terminal {session}: {}; {} s, {} B out, {} B in; recording {}",
            plain(&said.why),
            said.lasted_s,
            said.output,
            said.input,
            plain(&said.recording),
        ),
        ..entry(region, "terminal.end", said.at_us)
    };
    tx.append_audit(&entry, sha256).map(|_| ())
}

/// The session whose end a report tells.
pub(super) fn has_ended(report: &Numbered) -> Option<CommandId> {
    match &report.kind {
        Some(numbered::Kind::TerminalEnded(said)) => CommandId::from_wire(&said.session).ok(),
        _ => None,
    }
}

/// That somebody with a good ticket was refused, for the audit log.
pub(super) fn refused(tx: &Tx<'_>, region: &str, said: &TerminalRefused) -> Result<(), StoreError> {
    let Ok(session) = CommandId::from_wire(&said.session) else {
        return Ok(());
    };
    // A region makes up no tokens, and none of another tenant.
    let Some(token) = tx.api_token(&said.token_id)? else {
        return Ok(());
    };
    let entry = AuditEntry {
        tenant: token.tenant,
        actor: format!("token {}", token.id),
        object: session.to_string(),
        source: plain(&format!("{} at region {region}", said.address)),
        outcome: "denied".to_owned(),
        detail: format!("{}: {}", plain(&said.code), plain(&said.message)),
        ..entry(region, "terminal.refused", said.at_us)
    };
    tx.append_audit(&entry, sha256).map(|_| ())
}
