//! Who is killed, when, and what is under way then.

use fairlead_tests::fleet::Fleet;
use fairlead_tests::oracle::history::Act;
use fairlead_tests::process::send;
use fairlead_tests::wait::moment;
use rustix::process::Signal;

use super::stream::{Dice, Size, Stream};

/// With the next one the supervisor dies too: its patience is not what is tried here.
const DEATHS_MAX: u32 = 3;

/// The storm's own part of the stream: what must be in flight at every kill.
pub(crate) struct Kills {
    size: Size,
    round: usize,
    /// How often the agent died under the same supervisor, which waits longer each time.
    deaths: u32,
}

impl Kills {
    pub(crate) fn new(size: Size) -> Self {
        Self {
            size,
            round: 0,
            deaths: 0,
        }
    }

    /// Sets a stop with its grace, behind it a start whose deadline comes first, a long process and a queue of three
    /// going; returns once the stop is under way.
    pub(crate) async fn load(&mut self, stream: &Stream, dice: &mut Dice) {
        let slow = stream.boxes.slow[self.round % stream.boxes.slow.len()].clone();
        self.round += 1;
        let mut asker = stream.asker(usize::MAX);
        asker.ask(&slow, Act::Start, 0).await;
        let stop = asker.ask(&slow, Act::Stop, self.size.grace_s).await;
        asker.ask_as(&slow, &slow, Act::Start, 0, Some(1)).await;
        let still = dice.pick(&stream.boxes.still).clone();
        asker.ask(&still, Act::Exec, self.size.process_s).await;
        for _ in 0..3 {
            asker.ask(&stream.boxes.queue, Act::Restart, 1).await;
        }
        asker.sees(&stop, true, self.size.patience).await;
    }

    /// Kills one of them, or several at once, and starts them again a moment later.
    pub(crate) async fn strike(&mut self, fleet: &mut Fleet, dice: &mut Dice) {
        let agent = fleet.hosts[0].agent_pid().await;
        let (mut agents, mut regions, mut controllers) = (false, false, false);
        match dice.roll(10) {
            0..3 => agents = true,
            3..5 => regions = true,
            5..7 => controllers = true,
            7 => (agents, regions) = (true, true),
            8 => (regions, controllers) = (true, true),
            _ => (agents, regions, controllers) = (true, true, true),
        }
        let with_supervisor = self.deaths == DEATHS_MAX || dice.roll(3) == 0;
        if agents && with_supervisor {
            fleet.hosts[0].kill();
        } else if agents {
            send(agent, Signal::KILL);
        }
        if regions {
            fleet.regions[0].process.kill();
        }
        if controllers {
            fleet.controller.kill();
        }
        moment(dice.roll(300)).await;
        if regions {
            fleet.regions[0].process.start_again();
        }
        moment(dice.roll(200)).await;
        if controllers {
            fleet.controller.start_again();
        }
        if agents && with_supervisor {
            fleet.hosts[0].start();
            self.deaths = 0;
        } else if agents {
            // Its supervisor starts another by itself.
            self.deaths += 1;
        }
    }
}
