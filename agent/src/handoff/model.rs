//! All interleavings of the handoff, explored: the machines that run in production (`Decider`, `Role`,
//! `Lanes`) between a model of processes, links, an engine and a server.
//!
//! What may happen, in any order: commands come; an upgrade is asked for; messages arrive, each sender's in
//! their order; processes die or freeze; links break and come back; the disk takes nothing; time passes. In
//! every state: no two instances own the host, no two commands act on the lane, none begins twice, epochs
//! grow. In every end: one owner, which the server routes to, and every command has been carried out.

use std::collections::HashSet;

use world::World;

mod check;
mod steps;
mod world;

/// Every state that can be reached; how many there are, and how many ends.
fn explore(world: World) -> (usize, usize) {
    let mut seen = HashSet::new();
    let mut ends = 0;
    let mut stack = vec![world];
    while let Some(world) = stack.pop() {
        if !seen.insert(world.fingerprint()) {
            continue;
        }
        world.check();
        let steps = world.steps();
        if steps.is_empty() {
            world.check_end();
            ends += 1;
        }
        for step in steps {
            let mut next = world.clone();
            next.step(step);
            stack.push(next);
        }
    }
    (seen.len(), ends)
}

#[test]
fn nothing_goes_wrong() {
    let (states, ends) = explore(World::new(3, 0, 0, 0, 0));
    println!("{states} states, {ends} ends");
    assert!(states > 1000);
}

#[test]
fn two_upgrades_follow_each_other_and_somebody_dies() {
    let mut world = World::new(2, 1, 0, 0, 0);
    (world.upgrades, world.early_ticks) = (2, 0);
    let (states, ends) = explore(world);
    println!("{states} states, {ends} ends");
}

#[test]
fn anybody_dies_at_any_moment() {
    let (states, ends) = explore(World::new(2, 1, 0, 0, 0));
    println!("{states} states, {ends} ends");
}

#[test]
fn two_die_at_any_moment() {
    let (states, ends) = explore(World::new(1, 2, 0, 0, 0));
    println!("{states} states, {ends} ends");
}

#[test]
fn anybody_freezes_at_any_moment() {
    let (states, ends) = explore(World::new(2, 0, 1, 0, 0));
    println!("{states} states, {ends} ends");
}

#[test]
fn links_come_and_go_and_somebody_dies() {
    let (states, ends) = explore(World::new(1, 1, 0, 1, 0));
    println!("{states} states, {ends} ends");
}

#[test]
fn the_disk_takes_nothing_for_a_while() {
    let (states, ends) = explore(World::new(1, 1, 0, 0, 1));
    println!("{states} states, {ends} ends");
}
