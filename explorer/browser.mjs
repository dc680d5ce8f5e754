// The headless browser of the checks: Chromium without a graphics processor, so that it draws alike on any machine.
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

export const launch = async () =>
  puppeteer.launch({
    executablePath: await chromium.executablePath(),
    // Not the package's own arguments: those draw through an emulated graphics processor, several times as slowly.
    args: ["--no-sandbox", "--no-zygote", "--disable-gpu"],
    headless: "shell",
  });
