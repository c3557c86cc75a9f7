//! What a region is answered about the terminals that live at its access server: whether a ticket still holds,
//! what is to end, recordings that arrive. A region is believed nothing about whose a terminal is.

use async_trait::async_trait;
use fairlead_api::ApiError;
use fairlead_identity::ticket;
use fairlead_protocol::{
    Command, CommandId, EndTerminal, Message, OpenTerminals, RecordingPart, RecordingTaken,
    SignedCommand, TerminalAnswer, TerminalAsk, TerminalInfo, codes, terminal_ask, uplink_down,
};
use fairlead_store::commands::CommandRow;
use fairlead_webssh::Info;
use fairlead_webssh::message::End;
use fairlead_webssh::recording::About;
use fairlead_webssh::recording::passing::{Arrived, NotTaken};

use super::super::ControllerBackend;
use super::Wanted;
use crate::regions::terminals::TerminalDesk;

impl ControllerBackend {
    async fn answered(
        &self,
        region: &str,
        ask: &TerminalAsk,
    ) -> Result<Option<TerminalInfo>, ApiError> {
        use terminal_ask::What;
        let unreadable = || ApiError::new(codes::PROTOCOL_VIOLATION, "that is no question");
        match &ask.what {
            Some(What::Admit(text)) => {
                let ticket = ticket::read(&(self.parts.desk.signer)(), text, self.now_us())
                    .map_err(|error| ApiError::new(codes::TICKET_REFUSED, error.to_string()))?;
                let admitted = self.admitted(&ticket, Some(region))?;
                Ok(Some(admitted.info.told(admitted.until_us)))
            }
            Some(What::Begin(session)) => {
                let session = CommandId::from_wire(session).map_err(|_| unreadable())?;
                let row = self.ordered(session, Some(region)).await?;
                if let Some(info) = self.whose(region, &row) {
                    self.parts.desk.regional.begins(&info, self.now_us());
                }
                Ok(None)
            }
            None => Err(unreadable()),
        }
    }

    /// Whose terminal a command of that region is, by what was signed.
    fn whose(&self, region: &str, row: &CommandRow) -> Option<Info> {
        if row.region != region {
            return None;
        }
        let signed = SignedCommand::decode(&row.signed[..]).ok()?;
        let command = Command::decode(&signed.command[..]).ok()?;
        let kind = command.kind.filter(|kind| row.kind == kind.name())?;
        let wanted = Wanted::of(kind)?;
        let host = self.look(|tx| tx.host(row.host)).ok()??;
        Some(Info {
            session: row.id,
            user: row.issuer.clone(),
            token_id: row.token_id.clone(),
            tenant: row.tenant.clone(),
            region: region.to_owned(),
            host_id: row.host,
            host: host.name,
            container: wanted.container,
            container_id: command
                .precondition
                .map(|condition| condition.container_id)
                .unwrap_or_default(),
            exec_user: wanted.exec_user,
            size: wanted.size,
        })
    }

    /// Ends a session at its region; whether the region could be told now. It is told again until it has.
    pub(super) fn end_there(&self, session: CommandId, why: End) -> bool {
        let told = self.parts.desk.regional.ends(session, why);
        told.is_none_or(|(region, end)| {
            let kind = uplink_down::Kind::EndTerminal(end);
            self.parts.dispatch.tell_region(&region, kind)
        })
    }

    /// Ends what lives at regions and nobody may have any more, and says again what has been said in vain.
    pub(in crate::backend) fn end_forbidden_there(&self) {
        let now_us = self.now_us();
        for there in self.parts.desk.regional.all() {
            let info = &there.info;
            let known = self.look(|tx| Ok((tx.api_token(&info.token_id)?, tx.host(info.host_id)?)));
            let why = match (there.ending, known) {
                (Some(why), _) => why,
                // The next round asks again.
                (None, Err(_)) => continue,
                (None, Ok((token, host))) => {
                    if !token.is_some_and(|token| token.is_good(now_us)) {
                        End::new(codes::UNAUTHENTICATED, "the API token ended or was revoked")
                    } else if host.is_none_or(|host| host.revoked_us != 0) {
                        End::new(codes::REVOKED, "the host was revoked")
                    } else {
                        continue;
                    }
                }
            };
            self.end_there(info.session, why);
        }
    }

    async fn taken(
        &self,
        region: &str,
        session: CommandId,
        part: RecordingPart,
    ) -> Result<(u64, bool), NotTaken> {
        let unknown = NotTaken::Wrong("no terminal of this region");
        let row = self
            .look(|tx| tx.command(session))
            .map_err(|_| std::io::Error::other("the store cannot be read"))?;
        let Some(info) = row.and_then(|row| self.whose(region, &row)) else {
            return Err(unknown);
        };
        let is_its = move |about: &About| {
            about.session == info.session.to_string()
                && about.user == info.user
                && about.token_id == info.token_id
                && about.tenant == info.tenant
                && about.region == info.region
                && about.host_id == info.host_id.to_string()
                && about.container_id == info.container_id
        };
        let ends_at = part.offset + part.data.len() as u64;
        let recordings = &self.parts.desk.recordings;
        let data = part.data.to_vec();
        match recordings
            .arrives(session, part.offset, data, is_its)
            .await?
        {
            Arrived::Done => Ok((0, true)),
            Arrived::Have(have) if part.last && have == ends_at && have > 0 => {
                self.arrived(region, session).await?;
                Ok((have, true))
            }
            Arrived::Have(0) if part.last && ends_at == 0 => {
                Err(NotTaken::Wrong("there is nothing in it"))
            }
            Arrived::Have(have) => Ok((have, false)),
        }
    }

    /// A recording is whole: what was found in it goes into the audit log.
    async fn arrived(&self, region: &str, session: CommandId) -> Result<(), NotTaken> {
        let recordings = &self.parts.desk.recordings;
        let (header, bytes, found) = recordings.has_arrived(session).await?;
        let about = header.fairlead;
        let (outcome, words) = match found {
            Ok(hash) => ("ok", hash),
            Err(broken) => {
                tracing::error!(%session, region, %broken, "a recording arrived that is not whole");
                ("failed", broken.to_string())
            }
        };
        let mut entry = self.own_entry(
            &about.tenant,
            "recording.arrive",
            &format!("{}/{}", about.host, about.container),
            format!("terminal {session}, {bytes} B of region {region}; {words}"),
        );
        outcome.clone_into(&mut entry.outcome);
        self.note_down(entry).await;
        Ok(())
    }
}

#[async_trait]
impl TerminalDesk for ControllerBackend {
    fn attached(&self, region: &str, at: &str) {
        self.parts.desk.regional.attached(region, at);
    }

    fn detached(&self, region: &str) {
        self.parts.desk.regional.detached(region);
    }

    fn origins(&self) -> Vec<String> {
        self.parts.desk.origins.all()
    }

    async fn asked(&self, region: &str, ask: TerminalAsk) -> TerminalAnswer {
        let request = ask.request;
        match self.answered(region, &ask).await {
            Ok(info) => TerminalAnswer {
                request,
                info,
                ..TerminalAnswer::default()
            },
            Err(error) => {
                self.parts.metrics.denied();
                TerminalAnswer {
                    request,
                    code: error.code.to_owned(),
                    message: error.message,
                    info: None,
                }
            }
        }
    }

    fn told(&self, region: &str, open: OpenTerminals) -> Vec<EndTerminal> {
        self.parts.desk.regional.told(region, open, |session| {
            let row = self.look(|tx| tx.command(session)).ok()??;
            self.whose(region, &row)
        })
    }

    fn ended(&self, region: &str, session: CommandId) {
        self.parts.desk.regional.ended(region, session);
    }

    async fn recording(&self, region: &str, part: RecordingPart) -> RecordingTaken {
        let mut answer = RecordingTaken {
            session: part.session.clone(),
            ..RecordingTaken::default()
        };
        let taken = match CommandId::from_wire(&part.session) {
            Ok(session) => self.taken(region, session, part).await,
            Err(_) => Err(NotTaken::Wrong("ids are 16 bytes")),
        };
        match taken {
            Ok((have, done)) => (answer.have, answer.done) = (have, done),
            Err(NotTaken::Wrong(why)) => {
                tracing::error!(region, why, "a recording is not taken");
                answer.code = codes::PROTOCOL_VIOLATION.to_owned();
                why.clone_into(&mut answer.message);
            }
            Err(NotTaken::Disk(error)) => {
                answer.code = codes::STORAGE_UNAVAILABLE.to_owned();
                answer.message = error.to_string();
            }
        }
        answer
    }
}
