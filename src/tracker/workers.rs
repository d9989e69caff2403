//! Threads that wait on sockets, do what has come, and wait again. On a tracker's small requests a thread that waits in
//! the kernel beats a task that is woken.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

/// How often a thread looks whether it is to end, if nothing wakes it.
const LOOK_UP: Duration = Duration::from_secs(1);
/// For requests and answers, with room to spare.
const STACK: usize = 512 * 1024;

/// Whether they are to end.
#[derive(Clone, Debug, Default)]
pub(super) struct End(Arc<AtomicBool>);

impl End {
    pub fn is_near(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// The threads. Dropping them ends them, without waiting.
#[derive(Default)]
pub(super) struct Workers {
    end: End,
    sockets: Vec<Arc<dyn AsFd + Send + Sync>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` more, which share a socket. Their waiting on it ends now and then with `WouldBlock`.
    pub fn start<S: AsFd + Send + Sync + 'static>(
        &mut self,
        name: &str,
        socket: S,
        count: usize,
        work: impl Fn(&S, &End) + Clone + Send + 'static,
    ) -> io::Result<()> {
        let socket = Arc::new(socket);
        SockRef::from(&*socket).set_read_timeout(Some(LOOK_UP))?;
        SockRef::from(&*socket).set_write_timeout(Some(LOOK_UP))?;
        self.sockets.push(socket.clone());
        for _ in 0..count {
            let (socket, end, work) = (socket.clone(), self.end.clone(), work.clone());
            let thread = thread::Builder::new().name(name.into()).stack_size(STACK);
            self.threads.push(thread.spawn(move || work(&socket, &end))?);
        }
        Ok(())
    }

    fn end(&self) {
        self.end.0.store(true, Relaxed);
        for socket in &self.sockets {
            // On Linux this wakes who waits, and also where it is an error: on a socket connected to nobody.
            let _ = SockRef::from(&socket.as_fd()).shutdown(Shutdown::Both);
        }
    }

    /// Ends them and waits for what they are at: [`LOOK_UP`] at most.
    pub fn join(mut self) {
        self.end();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end();
    }
}
