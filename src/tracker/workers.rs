//! Threads that wait on sockets and serve them. For a tracker's small requests, a thread that blocks in the kernel is faster
//! than an asynchronous task.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

/// Interval at which a waiting thread checks the stop flag, in case the shutdown of its socket does not wake it.
const STOP_POLL: Duration = Duration::from_secs(1);
/// Stack size of a thread in bytes. Requests and responses need a small part of it.
const STACK_SIZE: usize = 512 * 1024;

/// Tells threads to stop.
#[derive(Clone, Debug, Default)]
pub(super) struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Returns whether the threads must stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// The threads. Dropping it stops them, without waiting for them.
#[derive(Default)]
pub(super) struct Workers {
    stop: StopFlag,
    sockets: Vec<Arc<dyn AsFd + Send + Sync>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads that share a socket. Blocking calls on it return `WouldBlock` after [`STOP_POLL`].
    pub fn start<S: AsFd + Send + Sync + 'static>(
        &mut self,
        name: &str,
        socket: S,
        count: usize,
        work: impl Fn(&S, &StopFlag) + Clone + Send + 'static,
    ) -> io::Result<()> {
        let socket = Arc::new(socket);
        SockRef::from(&*socket).set_read_timeout(Some(STOP_POLL))?;
        SockRef::from(&*socket).set_write_timeout(Some(STOP_POLL))?;
        self.sockets.push(socket.clone());
        for _ in 0..count {
            let (socket, stop, work) = (socket.clone(), self.stop.clone(), work.clone());
            let thread = thread::Builder::new().name(name.into()).stack_size(STACK_SIZE);
            self.threads.push(thread.spawn(move || work(&socket, &stop))?);
        }
        Ok(())
    }

    fn signal_stop(&self) {
        self.stop.0.store(true, Relaxed);
        for socket in &self.sockets {
            // Linux wakes blocked threads even where it returns an error: a UDP socket is not connected.
            let _ = SockRef::from(&socket.as_fd()).shutdown(Shutdown::Both);
        }
    }

    /// Stops the threads and waits until they finish their current request, at most [`STOP_POLL`].
    pub fn join(mut self) {
        self.signal_stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.signal_stop();
    }
}
