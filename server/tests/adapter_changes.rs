//! Adapters that come and go while requests run: whoever runs ends first, more of them than there are places, and all at once.

use crate::harness;

use harness::adapters::{
    COMPLETIONS, LOAD, UNLOAD, change, completion, folders, load, names, setup, text, unload, working_ahead,
};
use harness::batches::Folder;
use harness::client::Connection;
use harness::{MODEL, Setup, TestServer, wait_until};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A request that runs, held before its next step, and one that unloads its adapter: the name is gone, and the adapter is not.
fn unloading_what_runs(server: &TestServer) -> (Connection, Connection) {
    server.control.close();
    let mut running = server.connect();
    running.send_json(COMPLETIONS, &completion("one"));
    server.control.wait_until_blocked();
    (running, unloading(server))
}

/// Its name is gone when this returns.
fn unloading(server: &TestServer) -> Connection {
    let mut unloading = server.connect();
    unloading.send_json(UNLOAD, &json!({"lora_name": "one"}));
    wait_until("the name is gone", || !names(server).contains(&"one".to_owned()));
    unloading
}

#[test]
fn running_requests_end_before_their_adapter_goes() {
    for server in [TestServer::with as fn(Setup) -> TestServer, working_ahead] {
        let folder = folders("adapters-running");
        let server = server(setup(&folder, 1, &[("one", "1")]));
        let before = text(&server, "one");
        let (mut running, mut unloading) = unloading_what_runs(&server);
        assert_eq!(server.post(COMPLETIONS, &completion("one")).status, 404);
        // Its place is not free yet, and neither is that of a name that comes again.
        assert_eq!((load(&server, "two", "2").0, load(&server, "one", "1").0), (409, 409));
        server.control.open();
        assert_eq!(running.receive().json()["choices"][0]["text"], before);
        assert_eq!(unloading.receive().status, 200);
        assert_eq!(load(&server, "one", "1").0, 200);
        assert_eq!(text(&server, "one"), before);
    }
}

#[test]
fn an_adapter_whose_clients_hang_up_goes_and_the_rest_goes_on() {
    let folder = folders("adapters-hang-up");
    let server = working_ahead(setup(&folder, 1, &[("one", "1")]));
    let base = text(&server, MODEL);
    server.control.close();
    let mut stays = server.connect();
    stays.send_json(COMPLETIONS, &completion(MODEL));
    let mut leaves = server.connect();
    leaves.send_json(COMPLETIONS, &completion("one"));
    server.control.wait_until_blocked();
    let unloading = unloading(&server);
    drop(leaves);
    // Nor does a change end with its client.
    drop(unloading);
    server.control.open();
    assert_eq!(stays.receive().json()["choices"][0]["text"], base);
    wait_until("there is room", || load(&server, "two", "2").0 == 200);
}

#[test]
fn the_server_goes_down_in_the_middle_of_a_change() {
    let folder = folders("adapters-down");
    let mut server = TestServer::with(setup(&folder, 2, &[("one", "1")]));
    let (mut running, mut unloading) = unloading_what_runs(&server);
    let drained = server.stop_at_once();
    server.control.open();
    // In order or cut off, but nobody is left waiting.
    assert!([200, 503].contains(&running.receive().status));
    assert!([200, 503].contains(&unloading.receive().status));
    server.runtime.block_on(drained).expect("no panic");
}

#[test]
fn everything_at_once() {
    const ROUNDS: usize = 25;
    let folder = folders("adapters-race");
    let server = TestServer::with(setup(&folder, 2, &[]));
    // What each adapter says, and the base.
    let said = ["1", "2", "3"].map(|path| {
        assert_eq!(load(&server, path, path).0, 200);
        let said = text(&server, path);
        assert_eq!(unload(&server, path).0, 200);
        said
    });
    let base = text(&server, MODEL);
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for changer in 0..3 {
            let (server, answered) = (&server, &answered);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let name = ["1", "2", "3"][(changer + round) % 3];
                    let in_place = round % 4 == 3;
                    let body = json!({"lora_name": name, "lora_path": name, "load_inplace": in_place});
                    let (status, message) = change(server, LOAD, body);
                    assert!([200, 400, 409].contains(&status), "{message}");
                    if status == 200 {
                        answered.fetch_add(1, Relaxed);
                    }
                    let (status, message) = unload(server, name);
                    assert!([200, 404].contains(&status), "{message}");
                }
            });
        }
        for asker in 0..3 {
            let (server, said, base) = (&server, &said, &base);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let index = (asker + round) % 4;
                    let Some(expected) = said.get(index) else {
                        assert_eq!(text(server, MODEL), *base);
                        continue;
                    };
                    let response = server.post(COMPLETIONS, &completion(["1", "2", "3"][index]));
                    match response.status {
                        200 => assert_eq!(response.json()["choices"][0]["text"], *expected),
                        status => assert_eq!(status, 404, "{}", response.text()),
                    }
                }
            });
        }
    });
    assert!(answered.into_inner() > 0);
    // Nothing is left over: neither a name nor a slot.
    assert_eq!(names(&server), [MODEL, "alias"]);
    for name in ["1", "2"] {
        assert_eq!(load(&server, name, name).0, 200);
    }
    assert_eq!([text(&server, "1"), text(&server, "2")], said[..2]);
}

/// Three adapters and one place.
fn crowded(folder: &Folder) -> Setup {
    let mut setup = setup(folder, 1, &[("one", "1"), ("two", "2"), ("three", "3")]);
    setup.options.adapters.max_cpu_loras = 3;
    setup
}

const THREE: [&str; 3] = ["one", "two", "three"];

#[test]
fn more_adapters_than_places() {
    let folder = folders("adapters-crowded");
    let roomy = TestServer::with(setup(&folder, 3, &[("one", "1"), ("two", "2"), ("three", "3")]));
    let said = THREE.map(|name| text(&roomy, name));
    for server in [TestServer::with as fn(Setup) -> TestServer, working_ahead] {
        let server = server(crowded(&folder));
        assert_eq!(names(&server), [MODEL, "alias", "one", "two", "three"]);
        let base = text(&server, MODEL);
        // Each makes room for the next.
        for _ in 0..2 {
            assert_eq!(THREE.map(|name| text(&server, name)), said);
        }
        let moved = server.metric("perilune:adapters_moved_in_total", "");
        assert_eq!(moved, 5.0, "the first had its place from the start");
        // And all at once, with the base: nobody is lost.
        server.control.close();
        let mut connections: Vec<(usize, Connection)> = (0..16)
            .map(|index| {
                let mut connection = server.connect();
                let mut body = completion([MODEL, "one", "two", "three"][index % 4]);
                body["n"] = (1 + index / 8).into();
                connection.send_json(COMPLETIONS, &body);
                (index, connection)
            })
            .collect();
        server.control.wait_until_blocked();
        server.control.open();
        for (index, connection) in &mut connections {
            let expected = if *index % 4 == 0 { &base } else { &said[*index % 4 - 1] };
            let answer = connection.receive().json();
            let choices = answer["choices"].as_array().expect("choices");
            assert!(choices.iter().all(|choice| choice["text"] == *expected), "request {index}: {answer}");
        }
        assert_eq!(server.metric("perilune:adapter_waiting_sequences", ""), 0.0);
        // All that there may be are loaded.
        assert_eq!(load(&server, "four", "4").0, 409);
        assert_eq!((unload(&server, "two").0, load(&server, "four", "4").0), (200, 200));
        assert_eq!([text(&server, "four"), text(&server, "one")][1], said[0]);
        assert_eq!(server.post(COMPLETIONS, &completion("two")).status, 404);
    }
}

#[test]
fn requests_that_wait_for_a_place() {
    let folder = folders("adapters-parked");
    let mut server = working_ahead(crowded(&folder));
    let said = THREE.map(|name| text(&server, name));
    server.control.close();
    let ask = |model: &str| {
        let mut connection = server.connect();
        connection.send_json(COMPLETIONS, &completion(model));
        connection
    };
    let parked = || server.metric("perilune:adapter_waiting_sequences", "");
    // Longer than it takes until the others are seen.
    let mut running = server.connect();
    let mut long = completion("three");
    long["max_tokens"] = 800.into();
    running.send_json(COMPLETIONS, &long);
    server.control.wait_until_blocked();
    let (mut first, leaves, mut last) = (ask("one"), ask("two"), ask("two"));
    // They are seen between two steps.
    let until = |count: f64| {
        wait_until("they are parked", || {
            server.control.permit(1);
            parked() == count
        });
    };
    until(3.0);
    let mut unloading = unloading(&server);
    drop(leaves);
    server.control.open();
    let long = running.receive().json()["choices"][0]["text"].as_str().expect("a text").to_owned();
    assert!(long.starts_with(said[2].as_str().expect("a text")), "{long}");
    // One that was unloaded meanwhile is moved in for those that asked before.
    assert_eq!(first.receive().json()["choices"][0]["text"], said[0]);
    assert_eq!(last.receive().json()["choices"][0]["text"], said[1]);
    assert_eq!(unloading.receive().status, 200);
    wait_until("nobody is parked", || parked() == 0.0);
    // Who waits when the server goes down is told.
    server.control.close();
    let mut running = ask("three");
    server.control.wait_until_blocked();
    let mut waiting = ask("two");
    // A connection that nobody has accepted yet would be reset.
    wait_until("both are taken in", || server.get("/load").json()["server_load"] == 2);
    let drained = server.stop_at_once();
    server.control.open();
    for connection in [&mut running, &mut waiting] {
        assert!([200, 503].contains(&connection.receive().status));
    }
    server.runtime.block_on(drained).expect("no panic");
}
