//! `agent`: versions on their way to the hosts (`rollout`), and the keys that sign them. What has to do with keys
//! works on files only, and asks no server: a key that signs versions belongs on a machine of its own.

use fairlead_packer::keys::{self, KeyFileError};

use super::{Context, rollout};
use crate::args::AgentVerb;
use crate::exit::{Exit, Failure};

/// `fairlead agent …`
pub(crate) async fn agent(context: &Context, verb: AgentVerb) -> Result<Exit, Failure> {
    let public = match verb {
        AgentVerb::Versions => return rollout::versions(context).await,
        AgentVerb::Push { folder } => return rollout::push(context, &folder).await,
        AgentVerb::Upgrade(args) => return Box::pin(rollout::upgrade(context, args)).await,
        AgentVerb::Keygen { out } => keys::generate(&out).map_err(|error| {
            if out.symlink_metadata().is_ok() {
                Failure::new(Exit::Conflict, error.to_string())
                    .hint("a key is never overwritten: choose another file")
            } else {
                failed(&error)
            }
        })?,
        AgentVerb::PublicKey { file } => {
            keys::read(&file).map_err(|error| failed(&error))?.public()
        }
    };
    let (id, key) = (public.id().to_string(), public.to_string());
    let value = serde_json::json!({ "id": id, "public_key": key });
    context.out.data(&value, |_| format!("{key}\n"))?;
    Ok(Exit::Ok)
}

fn failed(error: &KeyFileError) -> Failure {
    let hint = match error {
        KeyFileError::File(_) => "is the path right, and may you use it?",
        KeyFileError::Key { .. } => "make a key: fairlead agent keygen --out FILE",
        KeyFileError::Open(_) => "if others may have read it, make a new key instead",
    };
    Failure::new(Exit::Failed, error.to_string()).hint(hint)
}
