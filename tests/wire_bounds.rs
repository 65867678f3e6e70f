//! How much memory hostile bytes can make the parsers take.
//!
//! An allocator counts what each thread holds; every test states its bound.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{self, BufReader, Read};

use hydrad::nix::derivation::{DRV_BYTES_MAX, DRV_ELEMENTS_MAX};
use hydrad::nix::nar::{self, DEPTH_MAX, NAME_BYTES_MAX};
use hydrad::nix::products::MemberScan;
use hydrad::nix::{Derivation, DerivationFacts};
use hydrad::wire::frame::{LIST_COUNT_MAX, TEXT_BYTES_MAX, WORD_BYTES_MAX};
use hydrad::wire::{ServeClient, WorkerClient};

struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is ending has no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that `f` holds at once at most.
fn peak<T>(f: impl FnOnce() -> T) -> usize {
    let before = HELD.get();
    PEAK.set(before);
    let result = f();
    let peak = PEAK.get() - before;
    drop(result);
    usize::try_from(peak).unwrap()
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn token(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn tokens(texts: &[&[u8]]) -> Vec<u8> {
    texts.iter().flat_map(|text| token(text)).collect()
}

/// Yields `head` and then `body` again and again.
struct Endless {
    head: Vec<u8>,
    body: Vec<u8>,
    at: usize,
}

impl Read for Endless {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.head.len() {
            self.head.clone_from(&self.body);
            self.at = 0;
        }
        let n = (&self.head[self.at..]).read(buf)?;
        self.at += n;
        Ok(n)
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(peak(|| drop(vec![0u8; 1000])), 1000);
    assert_eq!(peak(|| 7), 0);
}

#[test]
fn derivations() {
    let derivation = |args: &str, inputs: &str| {
        format!("Derive([(\"out\",\"/x\",\"\",\"\")],[{inputs}],[],\"s\",\"b\",[{args}],[])")
    };
    // The smallest strings, as many as are allowed.
    let count = DRV_ELEMENTS_MAX - 1;
    let args = vec!["\"\""; count].join(",");
    let text = derivation(&args, "");
    let mut drv = Ok(Derivation::default());
    let held = peak(|| drv = Derivation::parse(text.as_bytes()));
    assert_eq!(drv.unwrap().args.len(), count);
    assert!(held < 80 * MIB, "{held}");
    let held = peak(|| DerivationFacts::scan(text.as_bytes()).unwrap());
    assert!(held < 10 * KIB, "{held}");
    // More are refused before they are kept.
    let text = derivation(&(args + ",\"\",\"\""), "");
    assert!(Derivation::parse(text.as_bytes()).is_err());
    // The dearest elements are map entries; half of the elements can be such.
    let inputs: Vec<String> = (0..count / 2)
        .map(|i| format!("(\"/{i}\",[\"\"])"))
        .collect();
    let text = derivation("", &inputs.join(","));
    let held = peak(|| Derivation::parse(text.as_bytes()).unwrap());
    assert!(held < 160 * MIB, "{held}");
    // What is too long is not even looked at.
    let text = vec![b'x'; DRV_BYTES_MAX + 1];
    assert!(peak(|| Derivation::parse(&text).is_err()) < KIB);
}

#[test]
fn nars() {
    let start = tokens(&[b"nix-archive-1", b"(", b"type"]);
    let parse = |bytes: &[u8]| peak(|| nar::parse(bytes, &mut ()).is_err());
    // Lengths that promise too much.
    for len in [u64::MAX, i64::MAX as u64, 1 << 40, 1 << 20] {
        for head in [
            vec![],
            start.clone(),
            [start.clone(), tokens(&[b"symlink", b"target"])].concat(),
            [start.clone(), tokens(&[b"regular", b"contents"])].concat(),
        ] {
            let bytes = [head, len.to_le_bytes().to_vec(), vec![b'x'; 1000]].concat();
            let held = parse(&bytes);
            assert!(held < 2 * KIB, "{held}");
        }
    }
    // Directories inside each other without an end, with short and with long names.
    for name_len in [1, NAME_BYTES_MAX] {
        let name = vec![b'd'; name_len];
        let body = tokens(&[
            b"directory",
            b"entry",
            b"(",
            b"name",
            &name,
            b"node",
            b"(",
            b"type",
        ]);
        let mut reader = BufReader::new(Endless {
            head: start.clone(),
            body,
            at: 0,
        });
        let held = peak(|| nar::parse(&mut reader, &mut ()).unwrap_err());
        let bound = DEPTH_MAX * 100 + 300 * KIB;
        assert!(held < bound, "{held}");
    }
}

#[test]
fn members_of_a_large_output() {
    const FILES: usize = 50_000;
    let mut bytes = tokens(&[b"nix-archive-1", b"(", b"type", b"directory"]);
    for i in 0..FILES {
        let name = format!("{i:0100}");
        bytes.extend(tokens(&[b"entry", b"(", b"name", name.as_bytes(), b"node"]));
        bytes.extend(tokens(&[
            b"(",
            b"type",
            b"regular",
            b"contents",
            b"",
            b")",
            b")",
        ]));
    }
    bytes.extend(tokens(&[b")"]));
    let held = peak(|| {
        let mut scan = MemberScan::new();
        nar::parse(bytes.as_slice(), &mut scan).unwrap();
        scan
    });
    // A vector grows by doubling, and holds the old half meanwhile.
    assert!(
        held < FILES.next_power_of_two() * 64 * 3 / 2 + 10 * KIB,
        "{held}"
    );
}

#[test]
fn replies() {
    let serve = |reply: &[u8]| {
        let greeting = [0x5452_eecb_u64, 0x207].map(u64::to_le_bytes).concat();
        let bytes = [&greeting, reply].concat();
        ServeClient::handshake(io::Cursor::new(bytes), Vec::new()).unwrap()
    };
    let n = u64::to_le_bytes;
    let paths = ["/nix/store/x"];
    // Counts and lengths within their bounds, but nothing comes.
    let mut client = serve(&n(LIST_COUNT_MAX as u64));
    let held = peak(|| client.query_closure(&paths, false).unwrap_err());
    assert!(held < 10 * KIB, "{held}");
    let mut client = serve(&[n(1), n(WORD_BYTES_MAX as u64)].concat());
    let held = peak(|| client.query_closure(&paths, false).unwrap_err());
    assert!(held < 10 * KIB, "{held}");
    let mut client = serve(&[n(3), n(TEXT_BYTES_MAX as u64)].concat());
    client
        .build_derivation_start(
            "/x.drv",
            &Derivation::default(),
            &paths,
            &Default::default(),
        )
        .unwrap();
    let held = peak(|| client.build_derivation_finish().unwrap_err());
    assert!(held < 10 * KIB, "{held}");
    // Beyond their bounds.
    let mut client = serve(&n(u64::MAX));
    let held = peak(|| client.query_closure(&paths, false).unwrap_err());
    assert!(held < 10 * KIB, "{held}");

    // A daemon that logs without an end holds nothing of it.
    let body = [n(0x6f6c_6d67).to_vec(), token(&[b'x'; 5000])].concat();
    let head = [0x6478_696f_u64, 0x122].map(n).concat();
    let head = [
        head,
        token(b"2.8.0"),
        n(0x616c_7473).to_vec(),
        body.repeat(1000),
    ]
    .concat();
    let endless = Endless { head, body, at: 0 };
    let mut client = WorkerClient::handshake(endless.take(50 * MIB as u64), Vec::new()).unwrap();
    let held = peak(|| client.is_valid_path(paths[0]).unwrap_err());
    assert!(held < 100 * KIB, "{held}");
}
