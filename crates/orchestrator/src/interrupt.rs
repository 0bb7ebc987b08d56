//! Requests to stop: from the terminal, from the system, or from a test.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Where requests to stop come from. The first asks the children to stop, the second kills them.
#[derive(Debug)]
pub struct Interrupts {
    receiver: mpsc::UnboundedReceiver<()>,
    /// Kept so that the channel stays open where nobody else sends.
    _sender: InterruptSender,
}

/// Sends requests to stop.
#[derive(Debug, Clone)]
pub struct InterruptSender(mpsc::UnboundedSender<()>);

impl InterruptSender {
    /// Asks once.
    pub fn interrupt(&self) {
        // A run that has ended needs no request.
        let _ = self.0.send(());
    }
}

impl Interrupts {
    /// None ever, unless through the sender.
    pub fn channel() -> (InterruptSender, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let sender = InterruptSender(sender);
        (sender.clone(), Self { receiver, _sender: sender })
    }

    /// Ctrl-C (SIGINT) and SIGTERM. Must be called within a tokio runtime.
    pub fn from_signals() -> io::Result<Self> {
        let (sender, interrupts) = Self::channel();
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                sender.interrupt();
            }
        });
        Ok(interrupts)
    }

    pub(crate) async fn next(&mut self) {
        // Cannot end: a sender lives inside.
        let _ = self.receiver.recv().await;
    }
}
