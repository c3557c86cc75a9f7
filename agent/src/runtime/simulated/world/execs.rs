//! Execs of simulated containers: what is remembered of them.

use super::{CODE_KILLED, Exec, World};
use crate::runtime::{ExecSpec, ExecState, RuntimeError};

/// Execs that are remembered.
const EXECS_KEPT: usize = 1024;

impl World {
    pub(in crate::runtime::simulated) fn exec_create(
        &mut self,
        wanted: &str,
        spec: &ExecSpec,
        id: String,
        now_us: i64,
    ) -> Result<String, RuntimeError> {
        let index = self.find(wanted)?;
        if !self.containers[index].is_running() {
            return Err(RuntimeError::NotRunning(wanted.to_owned()));
        }
        if spec.command.is_empty() {
            return Err(RuntimeError::Engine("No exec command specified".to_owned()));
        }
        self.execs.push_back(Exec {
            id: id.clone(),
            container: self.containers[index].id.clone(),
            command: spec.command.clone(),
            env: spec.env.clone(),
            tty: spec.tty,
            stdin: spec.stdin,
            started: false,
            exit_code: None,
        });
        if self.execs.len() > EXECS_KEPT {
            self.execs.pop_front();
        }
        let action = format!("exec_create: {}", spec.command.join(" "));
        self.tell(index, now_us, &action, "");
        Ok(id)
    }

    /// Marks an exec as started; a second start is refused.
    pub(in crate::runtime::simulated) fn exec_start(
        &mut self,
        id: &str,
        now_us: i64,
    ) -> Result<Exec, RuntimeError> {
        let unknown = || RuntimeError::NoSuchExec(id.to_owned());
        let position = self
            .execs
            .iter()
            .position(|e| e.id == id)
            .ok_or_else(unknown)?;
        let exec = self.execs[position].clone();
        if exec.started {
            return Err(RuntimeError::Engine(format!(
                "Exec command {id} is already running"
            )));
        }
        let index = self.find(&exec.container)?;
        if !self.containers[index].is_running() {
            return Err(RuntimeError::NotRunning(exec.container));
        }
        self.execs[position].started = true;
        let action = format!("exec_start: {}", exec.command.join(" "));
        self.tell(index, now_us, &action, "");
        Ok(exec)
    }

    pub(in crate::runtime::simulated) fn exec_ended(&mut self, id: &str, code: i64) {
        if let Some(exec) = self.execs.iter_mut().find(|e| e.id == id) {
            exec.exit_code = Some(code);
        }
    }

    pub(in crate::runtime::simulated) fn exec_state(&self, id: &str) -> ExecState {
        match self.execs.iter().find(|e| e.id == id) {
            None => ExecState::Forgotten,
            Some(Exec {
                exit_code: Some(code),
                ..
            }) => ExecState::Exited(*code),
            Some(Exec { started: true, .. }) => ExecState::Running,
            Some(_) => ExecState::Created,
        }
    }

    /// After the process that held this world has ended: its execs ended with it.
    pub(in crate::runtime::simulated) fn after_a_break(&mut self) {
        for exec in self
            .execs
            .iter_mut()
            .filter(|e| e.started && e.exit_code.is_none())
        {
            exec.exit_code = Some(CODE_KILLED);
        }
    }
}
