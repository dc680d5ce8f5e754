// The headless browser of the checks: a Chromium that draws with its software renderer, as on any machine.
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

export const launch = async () =>
  puppeteer.launch({
    executablePath: await chromium.executablePath(),
    args: [...chromium.args, "--no-sandbox"],
    headless: "shell",
  });
